"""Leases: an item is reserved for the rater to whom it was shown, so that no item gets more votes than planned.

The rule that every grant and every vote keeps: the votes counted for a label item and the unexpired leases of other
raters are fewer than the overlap. A vote under an expired lease is accepted while the item still needs votes.
"""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass

from rlhf.feedback.records import Purpose


@dataclass(frozen=True, kw_only=True)
class Lease:
    """An item that a rater holds, and how it is shown."""

    item: int
    """Row number in ``items``."""
    is_swapped: bool
    is_repeat: bool = False
    is_adjudication: bool = False
    expires: float = 0.0
    """Unix time in seconds."""


def find_lease(db: sqlite3.Connection, rater: int) -> Lease | None:
    """The lease of a rater, even if expired; None if there is none."""
    row = db.execute(
        "SELECT item, is_swapped, is_repeat, is_adjudication, expires FROM leases WHERE rater = ?", (rater,)
    ).fetchone()
    if row is None:
        return None
    flags = {name: bool(row[name]) for name in ("is_swapped", "is_repeat", "is_adjudication")}
    return Lease(item=row["item"], expires=row["expires"], **flags)


def grant(db: sqlite3.Connection, rater: int, lease: Lease) -> None:
    """Give a lease to a rater, in place of the one that the rater had."""
    db.execute(
        "INSERT OR REPLACE INTO leases (rater, item, is_swapped, is_repeat, is_adjudication, expires)"
        " VALUES (?, ?, ?, ?, ?, ?)",
        (rater, lease.item, lease.is_swapped, lease.is_repeat, lease.is_adjudication, lease.expires),
    )


def release(db: sqlite3.Connection, rater: int) -> None:
    """Remove the lease of a rater."""
    db.execute("DELETE FROM leases WHERE rater = ?", (rater,))


def has_place(db: sqlite3.Connection, rater: int, lease: Lease, overlap: int, now: float) -> bool:
    """Whether the item still needs the holder's vote.

    A repeat, and a vote on a gold or calibration item, takes no place. An adjudication takes the only one.
    """
    item = db.execute("SELECT purpose, counted, adjudications FROM items WHERE number = ?", (lease.item,)).fetchone()
    if lease.is_repeat or item["purpose"] != Purpose.LABEL:
        return True
    others = 0 if lease.expires > now else _held_by_others(db, rater, lease, now)
    if lease.is_adjudication:
        return item["adjudications"] + others < 1
    return item["counted"] + others < overlap


def _held_by_others(db: sqlite3.Connection, rater: int, lease: Lease, now: float) -> int:
    row = db.execute(
        "SELECT count(*) FROM leases"
        " WHERE item = ? AND rater <> ? AND expires > ? AND is_repeat = 0 AND is_adjudication = ?",
        (lease.item, rater, now, lease.is_adjudication),
    ).fetchone()
    return int(row[0])
