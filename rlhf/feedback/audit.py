"""The audit of a project: what was done to raters, votes and settings, and when."""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass

from rlhf.storage.database import Database


@dataclass(frozen=True, kw_only=True)
class AuditEntry:
    """One recorded action."""

    time: float
    """Unix time in seconds."""
    action: str
    """In the past tense: "rater suspended"."""
    alias: str
    """The rater concerned; empty if none, or if the rater was deleted."""
    detail: str


def record(db: sqlite3.Connection, now: float, action: str, *, alias: str = "", detail: str = "") -> None:
    """Add an entry, inside the transaction of the action. ``detail`` holds no alias, so that deletion finds all."""
    db.execute("INSERT INTO audit (time, action, alias, detail) VALUES (?, ?, ?, ?)", (now, action, alias, detail))


class AuditTable(Database):
    """The audit's entries in the store."""

    def audit(self, limit: int = 100) -> list[AuditEntry]:
        """The newest ``limit`` entries, newest first."""
        query = "SELECT time, action, alias, detail FROM audit ORDER BY number DESC LIMIT ?"
        with self.connection() as db:
            return [AuditEntry(**dict(row)) for row in db.execute(query, (limit,))]
