"""Logs of Inspect (``inspect_ai`` of the UK AI Security Institute) as rows of an arm: input, answer, and scores.

The schema is that of ``EvalLog`` in https://inspect.aisi.org.uk/eval-logs.html: a ``.json`` file holds a whole log, an
``.eval`` file is a zip archive with one file of JSON for each sample.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rlhf.errors import UserError, first_line
from rlhf.records import Message, Messages, PromptRow, RowLocation

LETTERS = {"C": 1.0, "P": 0.5, "I": 0.0, "N": 0.0}
"""Scores that Inspect's scorers write as letters: correct, partial, incorrect, no answer."""
LARGEST = 1e300
"""Largest absolute value of a score; NaN and infinity are none."""
HEADERS = ("header.json", "_journal/start.json")
"""Files of an archive that describe the log: of a complete one, and of one that was cut off."""
_HEAD = 4096
"""Characters of a file that tell a log from other JSON."""
_FIX = "write the log again, or convert it with `inspect log convert --to json --output-dir FOLDER LOG`"


def is_inspect_log(file: str) -> bool:
    """Whether a file is a log: by its name ``.eval``, or JSON that begins as a log does."""
    path = Path(file)
    if path.suffix != ".json" or not path.is_file():
        return path.suffix == ".eval"
    with path.open(encoding="utf-8", errors="replace") as text:
        head = text.read(_HEAD)
    return head.lstrip().startswith("{") and '"version"' in head and '"eval"' in head


def read_inspect_log(file: str) -> tuple[PromptRow, ...]:
    """A row for each sample and epoch, with the columns ``response``, ``references``, ``scores`` and ``sampling``.

    A sample that ended with an error has an empty response, and only the scores that it got.

    Raises:
        UserError: the file cannot be read, or is no log with samples.
    """
    try:
        header, samples = _read_archive(file) if zipfile.is_zipfile(file) else _read_json(file)
        rows = tuple(_row(file, header, sample) for sample in samples)
    except NotImplementedError as error:  # Python reads archives of Zstandard, Inspect's default, from 3.14 on
        raise UserError(f"'{file}' is compressed with Zstandard", "this Python cannot read it", _FIX) from error
    except Exception as error:  # of a damaged file; archives and JSON of any shape raise many types
        why = f"{type(error).__name__}: {first_line(error)}"
        raise UserError(f"'{file}' cannot be read as a log of Inspect", why, _FIX) from error
    if not rows:
        raise UserError(f"the log '{file}' has no samples", "the evaluation ended before one, or wrote none", _FIX)
    return rows


def _read_json(file: str) -> tuple[Mapping[str, Any], Sequence[Mapping[str, Any]]]:
    log = json.loads(Path(file).read_text(encoding="utf-8-sig"))
    return log, log.get("samples") or []


def _read_archive(file: str) -> tuple[Mapping[str, Any], list[Mapping[str, Any]]]:
    with zipfile.ZipFile(file) as archive:
        names = sorted(name for name in archive.namelist() if name.startswith("samples/") and name.endswith(".json"))
        header = next((name for name in HEADERS if name in archive.namelist()), None)
        if header is None:
            raise ValueError(f"it holds no {' and no '.join(HEADERS)}")
        return json.loads(archive.read(header)), [json.loads(archive.read(name)) for name in names]


def _row(file: str, header: Mapping[str, Any], sample: Mapping[str, Any]) -> PromptRow:
    target = sample["target"]
    columns = {
        "response": str((sample.get("output") or {}).get("completion") or ""),
        "references": [target] if isinstance(target, str) else target,
        "scores": dict(_numbers(sample.get("scores") or {})),
        "sampling": header["plan"].get("config"),
    }
    where = f"{file}, sample {sample['id']}, epoch"
    return PromptRow(_prompt(sample["input"]), RowLocation(where, int(sample["epoch"])), columns)


def _prompt(given: str | Sequence[Mapping[str, Any]]) -> Messages | str:
    if isinstance(given, str):
        return given
    return tuple(Message(turn["role"], _text(turn["content"])) for turn in given)


def _text(content: str | Sequence[Mapping[str, Any]]) -> str:
    """The text of a turn; other parts, such as images, are left out."""
    return content if isinstance(content, str) else "".join(part.get("text", "") for part in content)


def _numbers(scores: Mapping[str, Mapping[str, Any]]) -> Iterator[tuple[str, float]]:
    """Scores that are numbers; a scorer that gives several has the names ``scorer/part``."""
    for name, score in scores.items():
        value = score["value"]
        parts = {f"{name}/{part}": each for part, each in value.items()} if isinstance(value, dict) else {name: value}
        yield from ((part, number) for part, each in parts.items() if (number := _number(each)) is not None)


def _number(value: object) -> float | None:
    """A score as Inspect's ``value_to_float`` reads it; None for a list, an unknown word, or no number."""
    if isinstance(value, str):
        words = {**LETTERS, "yes": 1.0, "true": 1.0, "no": 0.0, "false": 0.0}
        known = words.get(value, words.get(value.lower()))
        try:
            value = float(value) if known is None else known
        except ValueError:
            return None
    return float(value) if isinstance(value, int | float) and abs(value) <= LARGEST else None
