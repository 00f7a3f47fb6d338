"""JSON lines: one object per line, without NaN or infinity, so that any parser reads them."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from contextlib import nullcontext
from numbers import Integral, Real
from pathlib import Path
from typing import Any, BinaryIO

from rlhf.errors import UserError
from rlhf.storage.locking import locked
from rlhf.storage.reading import damaged
from rlhf.storage.write_errors import writing
from rlhf.unicode import encodable

_BLOCK_BYTES = 64 * 2**10


def json_safe(value: Any) -> Any:
    """Convert ``value`` to JSON types: NumPy scalars to numbers, NaN and infinities to null, other objects to text."""
    if value is None or isinstance(value, (str, bool)):
        return value
    if isinstance(value, Integral):
        return int(value)
    if isinstance(value, Real):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): json_safe(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [json_safe(item) for item in value]
    return str(value)


def to_line(row: Mapping[str, Any]) -> str:
    """Encode a row as one line of JSON, with its line break, that is valid UTF-8."""
    line = json.dumps(json_safe(row), ensure_ascii=False, allow_nan=False) + "\n"
    return encodable(line)


def append_line(path: Path, row: Mapping[str, Any], is_shared: bool = False) -> None:
    """Append one line to ``path``; on return the kernel has it, so that a killed run loses no line.

    An incomplete last line of a killed run is removed first.

    Args:
        is_shared: other processes may append too. The file is locked meanwhile, because a line that one of them is
            still writing is incomplete too.

    Raises:
        UserError: another process holds the lock for too long.
        OSError: of the file system, with the file's name.
    """
    line = to_line(row)
    with writing(path), path.open("ab+") as file, locked(file) if is_shared else nullcontext():
        _cut_torn_line(file)
        file.write(line.encode())
        file.flush()


def read_lines(path: Path, size: int | None = None) -> list[dict[str, Any]]:
    """Read the rows of ``path``, without an incomplete last line; empty if the file does not exist.

    Args:
        size: read only the first ``size`` bytes.

    Raises:
        UserError: the file cannot be read, or a line is no JSON object.
    """
    fix = "restore the file, or remove what is damaged"
    try:
        with path.open("rb") as file:
            lines = file.read(-1 if size is None else size).splitlines(keepends=True)
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise damaged(path, f"cannot be read: {error.strerror or error}", fix) from error
    rows = []
    for number, line in enumerate(lines, start=1):
        if not line.endswith(b"\n"):
            continue
        if (row := parsed(line)) is None:
            raise damaged(path, f"has no JSON object in line {number}", fix)
        rows.append(row)
    return rows


def given_rows(content: bytes, name: object) -> list[tuple[int, dict[str, Any]]]:
    """Line numbers, from 1, and rows of a file that users write.

    Blank lines are no rows, and the last line needs no line break.

    Args:
        name: the file's name, for messages.

    Raises:
        UserError: a line is no JSON object.
    """
    rows = []
    for number, line in enumerate(content.split(b"\n"), start=1):
        if not line.strip():
            continue
        if (row := parsed(line)) is None:
            raise UserError(f"{name}:{number} is no JSON object", fix="write one object a line, in UTF-8")
        rows.append((number, row))
    return rows


def parsed(text: bytes) -> dict[str, Any] | None:
    """Parse a JSON object; None if the text is not one, such as a line that another process is still writing."""
    try:
        row = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return row if isinstance(row, dict) else None


def _cut_torn_line(file: BinaryIO) -> None:
    end = file.seek(0, os.SEEK_END)
    if end == 0 or _read(file, end - 1, end) == b"\n":
        return
    while end > 0:
        start = max(0, end - _BLOCK_BYTES)
        if (newline := _read(file, start, end).rfind(b"\n")) >= 0:
            end = start + newline + 1
            break
        end = start
    file.truncate(end)


def _read(file: BinaryIO, start: int, end: int) -> bytes:
    file.seek(start)
    return file.read(end - start)
