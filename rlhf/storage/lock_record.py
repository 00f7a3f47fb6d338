"""The text of a lock file: the process that holds a folder, and its machine."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime


@dataclass(frozen=True, kw_only=True)
class LockRecord:
    """The process that took a lock last."""

    process: int
    host: str
    machine: str
    """Identifier of its machine since that booted."""
    since: float
    """When it took the lock, in seconds since 1970, by its own clock; for people."""
    key: str
    """Random name of this taking."""

    @property
    def name(self) -> str:
        """``process 4711 on head``."""
        return f"process {self.process} on {self.host}"

    @property
    def time(self) -> str:
        """When it took the lock, for people."""
        return datetime.fromtimestamp(self.since, UTC).isoformat(timespec="seconds")

    def to_text(self) -> str:
        """The file's text; its first line is for people."""
        return f"{self.name}\nmachine {self.machine}\nsince {self.since:.3f}\nkey {self.key}\n"


_TEXT = re.compile(r"process (\d+) on (\S+)\nmachine (\S+)\nsince (\d+\.\d+)\nkey (\w+)\n?")


def parse_record(text: str) -> LockRecord | None:
    """Parse the text of a lock file; None if it is empty, incomplete, or of an earlier version."""
    found = _TEXT.fullmatch(text)
    if found is None:
        return None
    process, host, machine, since, key = found.groups()
    return LockRecord(process=int(process), host=host, machine=machine, since=float(since), key=key)
