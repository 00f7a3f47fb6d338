"""Lines of JSON that any parser reads: no NaN or infinity, one object a line, whole lines only."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from numbers import Integral, Real
from pathlib import Path
from typing import Any, BinaryIO

_BLOCK_BYTES = 64 * 2**10


def json_safe(value: Any) -> Any:
    """``value`` in JSON's own types: NumPy scalars become numbers, NaN and infinities null, unknown objects text."""
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
    """A row as text that UTF-8 can hold, with its line break."""
    line = json.dumps(json_safe(row), ensure_ascii=False, allow_nan=False) + "\n"
    # backslashreplace turns a lone surrogate, which UTF-8 cannot hold, into the escape that JSON has for it.
    return line.encode(errors="backslashreplace").decode()


def append_line(path: Path, row: Mapping[str, Any]) -> None:
    """Add one line to ``path``. It is on its way to the disk on return, so a killed run loses none of its lines.

    What a killed run left of its last line is no row (see ``read_lines``): it is cut off, or it would spoil this one.
    """
    line = to_line(row)
    with path.open("ab+") as file:
        _cut_torn_line(file)
        file.write(line.encode())


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The rows of ``path``, none where it does not exist. A last line that a killed run left torn is not a row."""
    if not path.exists():
        return []
    with path.open(encoding="utf-8") as file:
        return [json.loads(line) for line in file if line.endswith("\n")]


def parsed(text: bytes) -> dict[str, Any] | None:
    """The object that a text is in JSON; None where it is none, or not yet: another process may be writing it."""
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
