"""A file of a stage's record that was deleted: which rows are lost, and where the new file is cut."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from rlhf.storage.jsonl import parsed

RECORD_LOST = "record_lost"
"""Kind of the event that tells of lost rows."""


@dataclass(frozen=True, kw_only=True)
class LostRows:
    """Rows that a file of a stage no longer has, since somebody deleted it."""

    file: Path
    before: int | None
    """The step before which all rows are lost; None for a file whose rows are of no step."""

    @property
    def text(self) -> str:
        """What happened, as a warning."""
        return (
            f"{self.file} was deleted: {self.rows} are lost, and a new file is begun. The run itself loses nothing; if "
            "you have a copy, put its lines before those of the new file once the run has ended"
        )

    @property
    def rows(self) -> str:
        """The lost rows, for messages; steps are counted from 0."""
        if self.before is None:
            return "its rows so far"
        return "the rows of step 0" if self.before == 1 else f"the rows of steps 0 to {self.before - 1}"


def told_before(events: Path) -> set[LostRows]:
    """What the events of a stage already tell of."""
    try:
        rows = [parsed(line) or {} for line in events.read_bytes().splitlines()]
    except FileNotFoundError:
        return set()
    told = [row for row in rows if row.get("kind") == RECORD_LOST]
    return {LostRows(file=events.with_name(Path(row["file"]).name), before=row["before_step"]) for row in told}


def first_step(file: Path) -> int | None:
    """The step of a file's first row; None if there is no file, or no step in that row."""
    try:
        with file.open("rb") as content:
            step = (parsed(content.readline()) or {}).get("step")
    except FileNotFoundError:
        return None
    return step if type(step) is int else None


def size_before(file: Path, step: int) -> int:
    """Size in bytes of a file's rows of the steps before ``step``; 0 if there is no file."""
    size = 0
    if file.exists():
        with file.open("rb") as content:
            for line in content:
                row = parsed(line) if line.endswith(b"\n") else None
                if row is None or not isinstance(row.get("step"), int) or row["step"] >= step:
                    break
                size += len(line)
    return size
