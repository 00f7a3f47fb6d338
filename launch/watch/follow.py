"""Reads a growing file incrementally; a line counts once it is complete."""

from __future__ import annotations

import os
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Generic, TypeVar

from launch.report.read import Row
from rlhf.storage.jsonl import parsed

Item = TypeVar("Item")

TAIL_BYTES = 4 * 2**20
"""Bytes to read of the end of an existing file."""
_MARK_BYTES = 64


@dataclass(frozen=True, kw_only=True)
class Recent(Generic[Item]):
    """The newest items of a longer sequence."""

    items: tuple[Item, ...] = ()
    total: int = 0
    """Total number of items so far; it never decreases."""

    def since(self, total: int) -> tuple[Item, ...]:
        """The kept items that came after the first ``total``."""
        new = min(self.total - total, len(self.items))
        return self.items[len(self.items) - new :] if new > 0 else ()


class Rows:
    """Reads the last ``keep`` rows of a JSONL file to which another process writes.

    A file that was truncated or replaced, as by a run that resumes from a checkpoint, is read again.
    """

    def __init__(self, path: Path, keep: int) -> None:
        self.path = path
        self._rows: deque[Row] = deque(maxlen=keep)
        self._total, self._offset = 0, 0
        self._inode: int | None = None
        self._mark = b""
        """Content before the offset when it was read."""

    def read(self) -> Recent[Row]:
        """Read new rows; a file that is missing or unreadable now has none."""
        try:
            with self.path.open("rb") as file:
                self._take(file)
        except OSError:
            self._inode = None
        return Recent(items=tuple(self._rows), total=self._total)

    def _take(self, file: BinaryIO) -> None:
        found = os.fstat(file.fileno())
        if found.st_ino != self._inode or found.st_size < self._offset or not self._is_marked(file):
            self._inode, self._offset = found.st_ino, 0
            self._rows.clear()
        skips = self._offset == 0 and found.st_size > TAIL_BYTES
        file.seek(found.st_size - TAIL_BYTES if skips else self._offset)
        start, text = file.tell(), file.read()
        begin, end = (text.find(b"\n") + 1 if skips else 0), text.rfind(b"\n") + 1
        for line in text[begin:end].splitlines():
            if (row := parsed(line)) is not None:
                self._rows.append(row)
                self._total += 1
        self._offset = start + end
        self._mark = text[:end][-_MARK_BYTES:] or self._mark

    def _is_marked(self, file: BinaryIO) -> bool:
        """Whether the content before the offset is unchanged."""
        if self._offset == 0:
            return True
        file.seek(self._offset - len(self._mark))
        return file.read(len(self._mark)) == self._mark


def read_object(path: Path) -> Row:
    """The object in a JSON file; empty if it cannot be read now."""
    try:
        return parsed(path.read_bytes()) or {}
    except OSError:
        return {}
