"""The output of a batch: written row after row beside its final name, continued after a kill, renamed when complete.

The file is its own journal: rows are in the input's order, so that its n complete lines are the output of the first n
rows. A killed run leaves at most a torn last line, which the next one cuts off.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self

from rlhf.errors import UserError
from rlhf.serving.batch_rows import failure_of
from rlhf.storage.durable import sync, write_atomically
from rlhf.storage.jsonl import parsed, to_line
from rlhf.storage.locking import try_lock
from rlhf.storage.reading import read_json

BLOCK_BYTES = 2**20


@dataclass(frozen=True, kw_only=True)
class InputFacts:
    """What identifies an input."""

    sha256: str
    rows: int


@dataclass(frozen=True, kw_only=True)
class BatchCounts:
    """A complete batch."""

    rows: int
    failed: int


def inspect_input(path: Path) -> InputFacts:
    """Hash a file and count its rows, a line at a time.

    Raises:
        UserError: it cannot be read, or has no row.
    """
    digest, rows = hashlib.sha256(), 0
    try:
        with path.open("rb") as file:
            for line in file:
                digest.update(line)
                rows += bool(line.strip())
    except OSError as error:
        raise UserError(f"--in {path} cannot be read: {error.strerror}", fix="name a file of JSON lines") from error
    if not rows:
        raise UserError(f"--in {path} has no rows", fix="name a file of JSON lines")
    return InputFacts(sha256=digest.hexdigest(), rows=rows)


def require_unchanged_input(path: Path, given: InputFacts) -> None:
    """Check that the input is still what it was at the begin, when every row has its output.

    Raises:
        UserError: it has changed: perhaps something still writes it.
    """
    if inspect_input(path) != given:
        what = f"--in {path} has changed while it was answered"
        raise UserError(what, "which rows the answers belong to is not known", "answer a copy that nobody writes to")


class BatchOutput:
    """The output of one job. A context manager that holds a lock: two runs of a job would write every row twice."""

    def __init__(self, out: Path, given: InputFacts, settings: Mapping[str, Any]) -> None:
        """Find out how far the job is.

        Args:
            settings: what else the answers depend on; a job is continued with the same only.

        Raises:
            UserError: the file is that of another job, or cannot be written.
        """
        self._out, self._rows = out, given.rows
        self._partial = out.with_name(f"{out.name}.partial")
        self._quarantine = out.with_name(f"{out.name}.quarantine.jsonl")
        self._job = out.with_name(f"{out.name}.job.json")
        job = {"input": given.sha256, "rows": given.rows, "settings": dict(settings)}
        known = read_json(self._job, dict, f"delete {self._job.name} and begin anew") if self._job.exists() else None
        if known is None and (out.exists() or self._partial.exists()):
            raise UserError(f"--out {out} exists", "a batch overwrites nothing", "choose another name")
        if known is not None and known != job:
            differ = [name for name in job if known.get(name) != job[name]]
            why = f"other {' and '.join(differ)}: its answers would be mixed with these"
            raise UserError(f"--out {out} belongs to another job", why, f"choose another name, or delete {out.name}*")
        self.is_complete = out.exists()
        """Whether an earlier run has ended the job."""
        if known is None:
            write_atomically(self._job, json.dumps(job, indent=1) + "\n")
        self.done = 0
        """Rows that are in the file; set by ``with``."""
        self._file: BinaryIO

    def __enter__(self) -> Self:
        """Lock the file, cut a torn line off, and count the rows.

        Raises:
            UserError: another process writes it, or it has more rows than the input.
        """
        self._file = self._partial.open("ab+")
        try:
            if try_lock(self._file) is False:
                raise UserError(f"--out {self._out} is being written by another process", fix="wait for its end")
            self.done = self._count()
            if self.done > self._rows:
                raise UserError(f"{self._partial} has {self.done} rows, the input {self._rows}", fix="delete it")
        except BaseException:
            self._file.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._file.close()

    def append(self, outputs: Sequence[Mapping[str, Any]]) -> None:
        """Append the output of the next rows; on return they are on the disk."""
        self._file.write("".join(map(to_line, outputs)).encode())
        self._file.flush()
        os.fsync(self._file.fileno())
        self.done += len(outputs)

    def finish(self) -> BatchCounts:
        """Write the failed rows to a file of their own as well, and give the output its name.

        May be repeated after a kill: the file of failed rows is made anew from the output.
        """
        assert self.done == self._rows
        partial, failed = self._quarantine.with_name(f"{self._quarantine.name}.partial"), 0
        self._file.seek(0)
        with partial.open("w", encoding="utf-8") as quarantine:
            for line in self._file:
                row = parsed(line)
                if row is None or failure_of(row):
                    quarantine.write(line.decode())
                    failed += 1
            quarantine.flush()
            os.fsync(quarantine.fileno())
        if failed:
            partial.replace(self._quarantine)
        else:
            partial.unlink()
        self._partial.replace(self._out)
        sync(self._out.parent)
        return BatchCounts(rows=self.done, failed=failed)

    def _count(self) -> int:
        """Cut a torn last line off; returns the number of complete lines."""
        self._file.seek(0)
        lines = end = position = 0
        while block := self._file.read(BLOCK_BYTES):
            lines += block.count(b"\n")
            if (last := block.rfind(b"\n")) >= 0:
                end = position + last + 1
            position += len(block)
        self._file.truncate(end)
        self._file.seek(0, os.SEEK_END)
        return lines
