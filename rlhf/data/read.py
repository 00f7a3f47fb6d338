"""Reads raw rows and their positions from JSONL, JSON, Parquet, ``datasets`` folders and the hub.

A row that cannot be read becomes a ``BadRow``, and reading continues. A file that cannot be read (missing, without
data, or a gzip stream, Parquet file or JSON list that is broken in the middle) is a ``UserError``, because the extent
of the loss is unknown.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import re
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from typing import IO, TYPE_CHECKING, TypeVar, cast

from rlhf.data.containers import LONGEST_MAGIC, refuse_binary, refuse_columns
from rlhf.errors import UserError
from rlhf.records import BadRow, DataFile, RowLocation

if TYPE_CHECKING:
    from pyarrow import RecordBatch

T = TypeVar("T")

KINDS = {".jsonl": "jsonl", ".ndjson": "jsonl", ".jsonlines": "jsonl", ".json": "json", ".parquet": "parquet"}
"""File name suffix → format, case-insensitive; an additional ``.gz`` is allowed."""

_NO_DATA = {"dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json"}
"""Files that describe a data set beside its data."""
_SHARD = re.compile(r"[-_.]?\d+([-_.]?of[-_.]?\d+)?([-_.][0-9a-f]{16})?\Z")
"""Shard suffix of a split's file name: ``train-00000-of-00003``."""
_SHOWN = 6  # file names in a message
_GZIP_MAGIC = b"\x1f\x8b"
_UTF8_MARK = b"\xef\xbb\xbf"
_WIDE = (b"\xff\xfe", b"\xfe\xff", b"\0\0\xfe\xff", b"{\0", b"\0{", b"[\0", b"\0[")
"""Beginnings of UTF-16 and UTF-32 files, with and without a byte order mark."""
_FIRST_LINES = 2  # the first may be blank
_WIDE_SHARE = (0.2, 0.8)
"""Share of null bytes in text of UTF-16 or UTF-32: a half or three quarters, if most characters are ASCII."""
_GAP = re.compile(r"[\s,]+")
_HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")


@dataclass(frozen=True)
class RawRow:
    """One row of a file: column name → value."""

    source: RowLocation
    columns: dict[str, object]
    filled: bool = False
    """Whether missing fields of nested values may be present as None, as in Parquet tables."""
    given: Mapping[str, object] = field(default_factory=dict)
    """The row of the file, if ``columns`` has other names."""
    names: Mapping[str, str] = field(default_factory=dict)
    """Names in ``columns`` → names in ``given``."""


Rows = Iterator[RawRow | BadRow]
Update = Callable[[bytes], object]
Reader = Callable[[Update], Rows]
"""Reads one file and passes the content to a hash."""


def read_rows(
    path: str,
    format: str = "auto",
    split: str = "train",
    max_rows: int | None = None,
    files: list[DataFile] | None = None,
    remarks: list[str] | None = None,
) -> Rows:
    """Read the rows of a file, of all data files of a folder, of a saved ``datasets`` folder or of a hub dataset.

    Args:
        path: file, folder or hub name.
        format: as ``DataConfig.format``; ``hh`` does not determine the file's format, detected as for ``auto``.
        split: split of a ``datasets`` folder or hub dataset. In a folder of plain files, the files of that name are
            read, or all files if none has it.
        max_rows: most rows to read of each file.
        files: receives an entry for each file once it is read.
        remarks: receives notes on parts of a folder that are not read.

    Raises:
        UserError: there is nothing to read at ``path``, or a file is broken as a whole.
    """
    place = _resolve_path(path)
    if format == "datasets" or _is_saved_dataset(place) or (format in ("auto", "hh") and _may_be_hub_name(place, path)):
        yield from _count_and_hash(path, partial(_read_datasets, path, place, split), max_rows, files)
        return
    chosen = _data_files(place, split)
    if remarks is not None and place.is_dir() and (left := _other_entries(place, chosen, split.lower())):
        remarks.append(f"not read of '{place}': {_listed(left)}")
    for file in chosen:
        yield from _count_and_hash(str(file), partial(_reader(file, format), file), max_rows, files)


def digest_of(file: str) -> DataFile:
    """Digest of a file without rows, such as a chat template.

    Raises:
        UserError: it cannot be read.
    """
    digest = _new_digest()
    _hash_file(Path(file).expanduser(), digest.update)
    return DataFile(file, 0, digest.hexdigest())


def _new_digest() -> hashlib.blake2b:
    return hashlib.blake2b(digest_size=16)


def _count_and_hash(name: str, read: Reader, max_rows: int | None, files: list[DataFile] | None) -> Rows:
    """Yield the rows of one file, which is hashed while it is read, so that large files are read once."""
    digest, rows = _new_digest(), 0
    for raw in islice(read(digest.update), max_rows):
        rows += 1
        yield raw
    if files is not None:
        files.append(DataFile(name, rows, digest.hexdigest()))


def _resolve_path(path: str) -> Path:
    try:
        place = Path(path).expanduser()
        place.exists()  # raises for names that no file can have
    except (OSError, ValueError, RuntimeError) as error:
        why = getattr(error, "strerror", None) or f"{error!s:.200}"  # the other one holds the whole name
        raise UserError(f"no data at {path!r:.200}", why, "name a file, a folder, or a dataset of the hub") from error
    return place


def _is_saved_dataset(place: Path) -> bool:
    if (place / "dataset_dict.json").exists():
        return True
    return (place / "state.json").exists() and any(place.glob("*.arrow"))


def _may_be_hub_name(place: Path, path: str) -> bool:
    """Whether the path may be a hub name: no data file suffix, and no part of it is a local folder."""
    if place.exists() or _format_of(place) or not _HUB_NAME.fullmatch(path):
        return False
    return place.parent == Path() or not place.parent.exists()


def _format_of(file: Path) -> str | None:
    return KINDS.get(_suffix(file))


def _suffix(file: Path) -> str:
    return Path(file.name.lower().removesuffix(".gz")).suffix


def _stem(file: Path) -> str:
    """The file name without its format suffixes."""
    return Path(file.name.lower().removesuffix(".gz")).stem


def _data_files(place: Path, split: str) -> list[Path]:
    if place.is_file():
        return [place]
    if not place.exists():
        fix = f"check the path; relative paths start at the folder that the command runs in, {Path.cwd()}"
        raise UserError(f"no data at '{place}'", "there is no such file or folder", fix)
    try:
        files = sorted(
            file for file in place.iterdir() if file.is_file() and _format_of(file) and file.name not in _NO_DATA
        )
    except OSError as error:  # a device, a pipe, or a folder without permission
        raise UserError(f"no data at '{place}'", str(error), "name a file, or a folder that you may read") from error
    if not files:
        held = _listed(_other_entries(place, [])) or "nothing else"
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
    """The files of the split, by exact name, else by prefix, else by a word in the name; else all files.

    Raises:
        UserError: these belong to several splits, as ``train_sft`` and ``train_prefs`` do for ``train``.
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
    """Refuse files that may hold the same rows in several formats.

    Raises:
        UserError: two files have the same name apart from their suffixes.
    """
    stems: dict[str, list[Path]] = {}
    for file in files:
        stems.setdefault(_stem(file), []).append(file)
    for copies in stems.values():
        if len(copies) > 1:
            raise UserError(
                f"{' and '.join(file.name for file in copies)} in '{copies[0].parent}' are one name in several formats",
                "if they hold the same rows, the model would be trained on each of them twice",
                f"name one of them, for example data.path={copies[0]}, or remove or rename the others",
            )


def _other_entries(place: Path, chosen: list[Path], split: str = "") -> list[str]:
    """Other entries of a folder, without other splits, descriptions and hidden files; folders end with ``/``."""
    found = []
    for entry in sorted(place.iterdir()):
        is_other_split = entry.is_file() and _format_of(entry) is not None and not _stem(entry).startswith(split)
        is_described = entry.name in _NO_DATA or _suffix(entry) == ".md" or _stem(entry) == "license"
        if not (entry in chosen or is_other_split or is_described or entry.name.startswith(".")):
            found.append(f"{entry.name}/" if entry.is_dir() else entry.name)
    return found


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - _SHOWN:,} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more


def _reader(file: Path, format: str) -> Callable[[Path, Update], Rows]:
    readers = {"jsonl": _read_jsonl, "json": _read_json, "parquet": _read_parquet}
    kind = format if format in readers else _format_of(file)
    if kind != "parquet":
        refuse_binary(file, _first_bytes(file))
    if kind is None:
        is_table = _suffix(file) in (".csv", ".tsv")
        how = "write its rows as JSONL, for example by pandas: read_csv(...).to_json('rows.jsonl', orient='records', "
        raise UserError(
            f"cannot determine the format of '{file}' by its name",
            "text tables are not read" if is_table else "",
            f"{how}lines=True)" if is_table else "set data.format to jsonl, json or parquet",
        )
    if kind == "json" and format != "json" and _first_character(file) != b"[":
        return _read_objects  # many files named .json hold one object per line
    return readers[kind]


def _open(file: Path) -> IO[bytes]:
    with file.open("rb") as stream:
        packed = stream.read(2) == _GZIP_MAGIC
    return cast(IO[bytes], gzip.open(file, "rb")) if packed else file.open("rb")


def _first_bytes(file: Path) -> bytes:
    with suppress(OSError), file.open("rb") as stream:  # refused with its reason when its rows are read
        return stream.read(LONGEST_MAGIC)
    return b""


def _lines(file: Path) -> Iterator[bytes]:
    try:
        with _open(file) as stream:
            for number, line in enumerate(stream):
                if number < _FIRST_LINES and _is_wide(line):
                    raise _not_utf8(file)
                yield line.removeprefix(_UTF8_MARK)  # concatenated files have one in the middle too
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"'{file}' cannot be read to its end", str(error), "get a whole copy of the file") from error


def _is_wide(line: bytes) -> bool:
    low, high = _WIDE_SHARE
    begun = line[:64]
    return line.startswith(_WIDE) or low * len(begun) < begun.count(0) < high * len(begun)


def _not_utf8(file: Path) -> UserError:
    return UserError(
        f"'{file}' is UTF-16 or UTF-32",
        "data files are read as UTF-8",
        f"save it as UTF-8, for example with `iconv -f UTF-16 -t UTF-8 {file.name} > new.{file.suffix.strip('.')}`",
    )


def _first_character(file: Path) -> bytes:
    return next((line.strip()[:1] for line in _lines(file) if line.strip()), b"")


def _read_jsonl(file: Path, update: Update) -> Rows:
    """Yield one row per line; blank lines are skipped."""
    for number, line in enumerate(_lines(file), start=1):
        if content := line.strip():
            update(content + b"\n")
            yield _read_line(line, RowLocation(str(file), number))


def _read_objects(file: Path, update: Update) -> Rows:
    """Rows of a JSON file that begins with an object: one per line.

    Raises:
        UserError: the file is one object, written by column or over several lines.
    """
    lines = (line for line in _lines(file) if line.strip())
    first, more = next(lines, b""), next(lines, None)
    if more is None or _is_begun(first):
        _refuse_one_object(file, has_lines=more is not None)
    return _read_jsonl(file, update)


def _is_begun(line: bytes) -> bool:
    """Whether a line is the beginning of a JSON object that other lines continue."""
    try:
        json.loads(line)
    except json.JSONDecodeError as error:
        return error.pos >= len(error.doc.rstrip())
    except (ValueError, RecursionError):
        pass
    return False


def _refuse_one_object(file: Path, has_lines: bool) -> None:
    try:
        whole = json.loads(b"".join(_lines(file)))
    except (ValueError, RecursionError):  # its rows are read one by one
        return
    refuse_columns(file, whole)
    if has_lines:
        raise UserError(
            f"'{file}' is one JSON object over several lines",
            "a JSON data file is a list of rows, [{...}, {...}], or has one row per line",
            f"write a list with this row in it, or `jq -c . {file.name} > rows.jsonl`",
        )


def _read_line(line: bytes, source: RowLocation) -> RawRow | BadRow:
    try:
        return _row(_DECODER.decode(line.decode("utf-8")), source)
    except UnicodeDecodeError as error:
        return BadRow(source, f"not UTF-8: {error.reason} at byte {error.start + 1} of the line")
    except json.JSONDecodeError as error:
        return BadRow(source, f"not JSON: {error.msg} at column {error.colno}")
    except RepeatedKeyError as error:
        return BadRow(source, f"ambiguous: {error}")
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, or deeply nested brackets
        return BadRow(source, f"not JSON: {error}")


class RepeatedKeyError(ValueError):
    """An object of JSON has two values for one key."""


def _object(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """A JSON object as a dictionary; of several values of a key Python's decoder would silently keep the last."""
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        repeated = next(name for name in names if names.count(name) > 1)
        raise RepeatedKeyError(f"the key {repeated!r:.60} occurs twice in one object")
    return found


_DECODER = json.JSONDecoder(object_pairs_hook=_object)


def _row(value: object, source: RowLocation) -> RawRow | BadRow:
    if isinstance(value, dict):
        return RawRow(source, value)
    return BadRow(source, f"not an object: a row is {{column: value}}, this one is a {type(value).__name__}")


def _read_json(file: Path, update: Update) -> Rows:
    """Yield the rows of a JSON list, decoded one by one so that each row has the line on which it begins."""
    text = _read_text(file, update)
    position = counted = _skip_gap(text, 0)
    line = 1 + text.count("\n", 0, position)
    if text[position : position + 1] != "[":
        raise _broken_json(file, line, "a JSON data file is a list of rows: [{...}, {...}]")
    position = _skip_gap(text, position + 1)
    while text[position : position + 1] != "]":
        line, counted = line + text.count("\n", counted, position), position
        try:
            value, position = _DECODER.raw_decode(text, position)
        except (ValueError, RecursionError) as error:
            raise _broken_json(file, line, f"the row that begins here is not JSON ({error})") from error
        yield _row(value, RowLocation(str(file), line))
        position = _skip_gap(text, position)
    if text[position + 1 :].strip():
        raise _broken_json(file, line, "there is more text after the list's end")


def _skip_gap(text: str, position: int) -> int:
    """The next position that is neither white space nor a comma."""
    gap = _GAP.match(text, position)
    return gap.end() if gap else position


def _read_text(file: Path, update: Update) -> str:
    data = b"".join(_lines(file))
    update(data)
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise _broken_json(file, 1 + data.count(b"\n", 0, error.start), f"not UTF-8 ({error.reason})") from error


def _broken_json(file: Path, line: int, why: str) -> UserError:
    return UserError(
        f"{file}:{line}: not a JSON list", why, "correct the file, or set data.format=jsonl for one object per line"
    )


def _read_parquet(file: Path, update: Update) -> Rows:
    from pyarrow.parquet import ParquetFile

    _hash_file(file, update)
    with _decoding(f"'{file}' cannot be read as Parquet"):
        opened = ParquetFile(file)
        names = opened.schema_arrow.names
        batches = opened.iter_batches()
    if twice := {name for name in names if names.count(name) > 1}:
        why = "it is ambiguous which of them is meant"
        raise UserError(f"'{file}' has two columns {min(twice)!r}", why, "rename or remove one of them")
    number = 0
    while (batch := _next(batches, f"'{file}' cannot be read as Parquet")) is not None:
        for outcome in _convert_rows(batch):
            number += 1
            source = RowLocation(str(file), number)
            yield BadRow(source, outcome) if isinstance(outcome, str) else RawRow(source, outcome, filled=True)


def _hash_file(file: Path, update: Update) -> None:
    """Hash a Parquet file separately: it is not read sequentially, and is far smaller than its rows."""
    with _decoding(f"'{file}' cannot be read"), file.open("rb") as stream:
        while chunk := stream.read(2**20):
            update(chunk)


def _convert_rows(batch: RecordBatch) -> Iterator[dict[str, object] | str]:
    """The rows of a batch; for a row that cannot be converted (invalid UTF-8, impossible dates), the reason."""
    try:
        yield from batch.to_pylist()
    except Exception:  # caused by one row, which the slower conversion row by row finds
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
    """Convert any error of a decoder to a ``UserError``: decoders raise many types on broken files."""
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
    except Exception as error:  # many types, for a broken folder or a hub name
        why = (
            f"{type(error).__name__}: {error}"
            if place.exists()
            else f"there is no such file or folder, and as a name on the hub: {error}"
        )
        raise UserError(f"no dataset at '{path}'", why, "check the name, and data.split in the recipe") from error
    if isinstance(saved, datasets.Dataset):
        return iter(saved)
    if split not in saved:
        raise UserError(
            f"'{path}' has no split '{split}'", f"its splits are {', '.join(saved)}", "set data.split to one of them"
        )
    return iter(saved[split])
