"""Raw rows and where they stand, from JSONL, JSON, Parquet, ``datasets`` folders and the hub.

Two outcomes. A row that cannot be read becomes a ``BadRow`` and reading goes on. A file that cannot be read (missing,
empty of data, a gzip stream, a Parquet file or a JSON list broken in the middle) is a ``UserError``: nobody knows how
much of it is lost.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import re
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from typing import IO, TYPE_CHECKING, TypeVar, cast

from rlhf.errors import UserError
from rlhf.records import BadRow, DataFile, RowLocation

if TYPE_CHECKING:
    from pyarrow import RecordBatch

T = TypeVar("T")

KINDS = {".jsonl": "jsonl", ".ndjson": "jsonl", ".jsonlines": "jsonl", ".json": "json", ".parquet": "parquet"}
"""What each ending of a file's name means, in small or capital letters; a further ``.gz`` is allowed."""

_NO_DATA = {"dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json"}
"""Files that describe a data set and lie beside its data."""
_SHARD = re.compile(r"[-_.]?\d+([-_.]?of[-_.]?\d+)?([-_.][0-9a-f]{16})?\Z")
"""End of the name of one of the files that a split is cut into: ``train-00000-of-00003``."""
_SHOWN = 6  # names of files in a message
_GZIP_MAGIC = b"\x1f\x8b"
_UTF8_MARK = b"\xef\xbb\xbf"
_WIDE = (b"\xff\xfe", b"\xfe\xff", b"\0\0\xfe\xff", b"{\0", b"\0{", b"[\0", b"\0[")
"""Beginnings of UTF-16 and UTF-32 files, with and without a byte order mark."""
_GAP = re.compile(r"[\s,]+")
_HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")


@dataclass(frozen=True)
class RawRow:
    """One row as its file has it: column name to value."""

    source: RowLocation
    columns: dict[str, object]
    filled: bool = False
    """Whether fields that a nested value does not have may be there as None, as in the tables of Parquet."""
    given: Mapping[str, object] = field(default_factory=dict)
    """The row as its file has it, where ``columns`` has other names."""
    names: Mapping[str, str] = field(default_factory=dict)
    """Names in ``columns`` → names in ``given``."""


Rows = Iterator[RawRow | BadRow]
Update = Callable[[bytes], object]
Reader = Callable[[Update], Rows]
"""Reads one file, and gives what it reads to a hash."""


def read_rows(
    path: str,
    format: str = "auto",
    split: str = "train",
    max_rows: int | None = None,
    files: list[DataFile] | None = None,
    remarks: list[str] | None = None,
) -> Rows:
    """Rows of a file, of every data file of a folder, of a saved ``datasets`` folder or of a hub dataset.

    Args:
        path: file, folder or hub name.
        format: as ``DataConfig.format``; ``hh`` says nothing about the file and is found out like ``auto``.
        split: the split of a ``datasets`` folder or hub dataset. In a folder of plain files those of that name are
            read, or all of them when none has it.
        max_rows: rows read of each file at most.
        files: takes what was read of each file, once all of it is.
        remarks: takes what a person should know of a folder: what of it is not read.

    Raises:
        UserError: nothing to read at ``path``, or a file broken beyond its single rows.
    """
    place = _place(path)
    if format == "datasets" or _is_saved_dataset(place) or (format in ("auto", "hh") and _may_be_hub_name(place, path)):
        yield from _counted(path, partial(_read_datasets, path, place, split), max_rows, files)
        return
    chosen = _data_files(place, split)
    if remarks is not None and place.is_dir() and (left := _left_out(place, chosen, split.lower())):
        remarks.append(f"not read of '{place}': {_listed(left)}")
    for file in chosen:
        yield from _counted(str(file), partial(_reader(file, format), file), max_rows, files)


def digest_of(file: str) -> DataFile:
    """A file that is no rows, such as a chat template.

    Raises:
        UserError: it cannot be read.
    """
    digest = _new_digest()
    _hash_file(Path(file).expanduser(), digest.update)
    return DataFile(file, 0, digest.hexdigest())


def _new_digest() -> hashlib.blake2b:
    return hashlib.blake2b(digest_size=16)


def _counted(name: str, read: Reader, max_rows: int | None, files: list[DataFile] | None) -> Rows:
    """The rows of one file, which is hashed as it is read: a gigabyte is not read twice."""
    digest, rows = _new_digest(), 0
    for raw in islice(read(digest.update), max_rows):
        rows += 1
        yield raw
    if files is not None:
        files.append(DataFile(name, rows, digest.hexdigest()))


def _place(path: str) -> Path:
    try:
        place = Path(path).expanduser()
        place.exists()  # raises for names that no file can have
    except (OSError, ValueError, RuntimeError) as error:
        why = getattr(error, "strerror", None) or f"{error!s:.200}"  # the other one holds the whole name
        raise UserError(f"no data at {path!r:.200}", why, "check data.path in the recipe") from error
    return place


def _is_saved_dataset(place: Path) -> bool:
    if (place / "dataset_dict.json").exists():
        return True
    return (place / "state.json").exists() and any(place.glob("*.arrow"))


def _may_be_hub_name(place: Path, path: str) -> bool:
    """Not a path that was mistyped: no ending of a data file, and no part of it is a folder here."""
    if place.exists() or _kind(place) or not _HUB_NAME.fullmatch(path):
        return False
    return place.parent == Path() or not place.parent.exists()


def _kind(file: Path) -> str | None:
    return KINDS.get(_ending(file))


def _ending(file: Path) -> str:
    return Path(file.name.lower().removesuffix(".gz")).suffix


def _stem(file: Path) -> str:
    """The name without what says how the file is written."""
    return Path(file.name.lower().removesuffix(".gz")).stem


def _data_files(place: Path, split: str) -> list[Path]:
    if place.is_file():
        return [place]
    if not place.exists():
        raise UserError(f"no data at '{place}'", "there is no such file or folder", "check data.path in the recipe")
    try:
        files = sorted(file for file in place.iterdir() if file.is_file() and _kind(file) and file.name not in _NO_DATA)
    except OSError as error:  # a device or a pipe, or a folder that is not ours
        raise UserError(f"no data at '{place}'", str(error), "name a file, or a folder that you may read") from error
    if not files:
        held = _listed(_left_out(place, [])) or "nothing else"
        raise UserError(
            f"no data in the folder '{place}'",
            f"it holds no file that ends in {', '.join(KINDS)} (or .gz of these) and is no saved `datasets` folder; "
            f"it holds {held}",
            "name a file, or the folder that holds the files",
        )
    files = _of_split(files, split.lower(), place)
    _refuse_copies(files)
    return files


def _of_split(files: list[Path], split: str, place: Path) -> list[Path]:
    """The files of the split: those named so, or else those that begin so, or else have it as a word; or else all.

    Raises:
        UserError: these are of several splits, as ``train_sft`` and ``train_prefs`` are for ``train``.
    """
    names = {file: stem if (stem := _stem(file)) == split else _SHARD.sub("", stem) for file in files}
    ways: tuple[Callable[[str], bool], ...] = (
        lambda name: name == split,
        lambda name: name.startswith(split),
        lambda name: split in re.split(r"[-_.\s]", name),
    )
    for fits in ways:
        if not (found := [file for file in files if fits(names[file])]):
            continue
        if len(several := sorted({names[file] for file in found})) > 1:
            raise UserError(
                f"data.split={split} fits several splits in the folder '{place}': {', '.join(several[:_SHOWN])}",
                "they may be for different stages, or hold the same rows",
                f"set data.split={several[0]} or another of them, or name a file in data.path; a data.split that is "
                "in no name, such as all, reads every file",
            )
        return found
    return files


def _refuse_copies(files: list[Path]) -> None:
    """Refuse what may be the same rows in several formats.

    Raises:
        UserError: two files have one name, but for its endings.
    """
    stems: dict[str, list[Path]] = {}
    for file in files:
        stems.setdefault(_stem(file), []).append(file)
    for copies in stems.values():
        if len(copies) > 1:
            raise UserError(
                f"{' and '.join(file.name for file in copies)} in '{copies[0].parent}' are one name in several formats",
                "if they hold the same rows, the model would learn each of them twice",
                f"name one of them, for example data.path={copies[0]}, or remove or rename the others",
            )


def _left_out(place: Path, chosen: list[Path], split: str = "") -> list[str]:
    """What else a folder holds but files of other splits, descriptions, and hidden files: folders with a ``/``."""
    found = []
    for entry in sorted(place.iterdir()):
        is_other_split = entry.is_file() and _kind(entry) is not None and not _stem(entry).startswith(split)
        is_described = entry.name in _NO_DATA or _ending(entry) == ".md" or _stem(entry) == "license"
        if not (entry in chosen or is_other_split or is_described or entry.name.startswith(".")):
            found.append(f"{entry.name}/" if entry.is_dir() else entry.name)
    return found


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - _SHOWN:,} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more


def _reader(file: Path, format: str) -> Callable[[Path, Update], Rows]:
    readers = {"jsonl": _read_jsonl, "json": _read_json, "parquet": _read_parquet}
    kind = format if format in readers else _kind(file)
    if kind is None:
        is_table = _ending(file) in (".csv", ".tsv")
        how = "write its rows as JSONL, for example by pandas: read_csv(...).to_json('rows.jsonl', orient='records', "
        raise UserError(
            f"cannot tell the format of '{file}' by its name",
            "tables of text are not read" if is_table else "",
            f"{how}lines=True)" if is_table else "set data.format to jsonl, json or parquet",
        )
    if kind == "json" and format != "json" and _first_character(file) != b"[":
        kind = "jsonl"  # many files named .json hold one object a line
    return readers[kind]


def _open(file: Path) -> IO[bytes]:
    with file.open("rb") as stream:
        packed = stream.read(2) == _GZIP_MAGIC
    return cast(IO[bytes], gzip.open(file, "rb")) if packed else file.open("rb")


def _lines(file: Path) -> Iterator[bytes]:
    try:
        with _open(file) as stream:
            for number, line in enumerate(stream):
                if number == 0 and line.startswith(_WIDE):
                    raise _not_utf8(file)
                yield line.removeprefix(_UTF8_MARK)  # files that were joined have one in the middle too
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"'{file}' cannot be read to its end", str(error), "get a whole copy of the file") from error


def _not_utf8(file: Path) -> UserError:
    return UserError(
        f"'{file}' is UTF-16 or UTF-32",
        "data files are read as UTF-8",
        f"save it as UTF-8, for example with `iconv -f UTF-16 -t UTF-8 {file.name} > new.{file.suffix.strip('.')}`",
    )


def _first_character(file: Path) -> bytes:
    return next((line.strip()[:1] for line in _lines(file) if line.strip()), b"")


def _read_jsonl(file: Path, update: Update) -> Rows:
    """One JSON object a line; blank lines are no rows."""
    for number, line in enumerate(_lines(file), start=1):
        if content := line.strip():
            update(content + b"\n")
            yield _read_line(line, RowLocation(str(file), number))


def _read_line(line: bytes, source: RowLocation) -> RawRow | BadRow:
    try:
        return _row(json.loads(line.decode("utf-8")), source)
    except UnicodeDecodeError as error:
        return BadRow(source, f"not UTF-8: {error.reason} at byte {error.start + 1} of the line")
    except json.JSONDecodeError as error:
        return BadRow(source, f"not JSON: {error.msg} at column {error.colno}")
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, brackets thousands deep
        return BadRow(source, f"not JSON: {error}")


def _row(value: object, source: RowLocation) -> RawRow | BadRow:
    if isinstance(value, dict):
        return RawRow(source, value)
    return BadRow(source, f"not an object: a row is {{column: value}}, this one is a {type(value).__name__}")


def _read_json(file: Path, update: Update) -> Rows:
    """A list of objects, decoded one by one so that each row knows the line on which it begins."""
    text = _text(file, update)
    decoder = json.JSONDecoder()
    position = counted = _skip_gap(text, 0)
    line = 1 + text.count("\n", 0, position)
    if text[position : position + 1] != "[":
        raise _broken_json(file, line, "a JSON data file is a list of rows: [{...}, {...}]")
    position = _skip_gap(text, position + 1)
    while text[position : position + 1] != "]":
        line, counted = line + text.count("\n", counted, position), position
        try:
            value, position = decoder.raw_decode(text, position)
        except (ValueError, RecursionError) as error:
            raise _broken_json(file, line, f"the row that begins here is not JSON ({error})") from error
        yield _row(value, RowLocation(str(file), line))
        position = _skip_gap(text, position)
    if text[position + 1 :].strip():
        raise _broken_json(file, line, "there is more text after the list's end")


def _skip_gap(text: str, position: int) -> int:
    """The next position that holds neither white space nor a comma."""
    gap = _GAP.match(text, position)
    return gap.end() if gap else position


def _text(file: Path, update: Update) -> str:
    data = b"".join(_lines(file))
    update(data)
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise _broken_json(file, 1 + data.count(b"\n", 0, error.start), f"not UTF-8 ({error.reason})") from error


def _broken_json(file: Path, line: int, why: str) -> UserError:
    return UserError(
        f"{file}:{line}: not a JSON list", why, "mend the file, or set data.format=jsonl for one object a line"
    )


def _read_parquet(file: Path, update: Update) -> Rows:
    from pyarrow.parquet import ParquetFile

    _hash_file(file, update)
    with _decoding(f"'{file}' cannot be read as Parquet"):
        opened = ParquetFile(file)
        names = opened.schema_arrow.names
        batches = opened.iter_batches()
    if twice := {name for name in names if names.count(name) > 1}:
        why = "which of them is meant, nobody can tell"
        raise UserError(f"'{file}' has two columns {min(twice)!r}", why, "rename or remove one of them")
    number = 0
    while (batch := _next(batches, f"'{file}' cannot be read as Parquet")) is not None:
        for outcome in _values(batch):
            number += 1
            source = RowLocation(str(file), number)
            yield BadRow(source, outcome) if isinstance(outcome, str) else RawRow(source, outcome, filled=True)


def _hash_file(file: Path, update: Update) -> None:
    """A Parquet file is not read from its beginning to its end, and is smaller than its rows by far."""
    with _decoding(f"'{file}' cannot be read"), file.open("rb") as stream:
        while chunk := stream.read(2**20):
            update(chunk)


def _values(batch: RecordBatch) -> Iterator[dict[str, object] | str]:
    """The rows of a batch, or why one has no value: text that is not UTF-8, a time that no calendar has."""
    try:
        yield from batch.to_pylist()
    except Exception:  # one of them: row by row takes longer, and finds it
        for i in range(len(batch)):
            try:
                yield batch.slice(i, 1).to_pylist()[0]
            except Exception as error:
                yield f"not readable: {type(error).__name__}: {error}"


def _next(items: Iterator[T], what: str) -> T | None:
    with _decoding(what):
        return next(items, None)


@contextmanager
def _decoding(what: str) -> Iterator[None]:
    """Whatever a decoder makes of a broken file is the file's fault: they raise all kinds of errors."""
    try:
        yield
    except Exception as error:
        why = f"{type(error).__name__}: {error}"
        raise UserError(what, why, "get a whole copy of the file") from error


def _read_datasets(path: str, place: Path, split: str, update: Update) -> Rows:
    rows, number = _load_dataset(path, place, split), 0
    while (columns := _next(rows, f"the dataset at '{path}' cannot be read to its end")) is not None:
        number += 1
        update(json.dumps(columns, default=repr).encode())
        yield RawRow(RowLocation(path, number), columns, filled=True)


def _load_dataset(path: str, place: Path, split: str) -> Iterator[dict[str, object]]:
    import datasets

    try:
        if not _is_saved_dataset(place):
            return iter(datasets.load_dataset(path, split=split))
        saved = datasets.load_from_disk(str(place))
    except Exception as error:  # a broken folder, or a name on the hub: all kinds of errors
        why = (
            f"{type(error).__name__}: {error}"
            if place.exists()
            else f"there is no such file or folder, and as a name on the hub: {error}"
        )
        raise UserError(f"no dataset at '{path}'", why, "check data.path and data.split in the recipe") from error
    if isinstance(saved, datasets.Dataset):
        return iter(saved)
    if split not in saved:
        raise UserError(
            f"'{path}' has no split '{split}'", f"its splits are {', '.join(saved)}", "set data.split to one of them"
        )
    return iter(saved[split])
