"""The votes of a project in its store: each is stored once, and only for an item that its rater holds."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable
from dataclasses import replace

from rlhf.errors import UserError
from rlhf.feedback.audit import record
from rlhf.feedback.encoding import canonical
from rlhf.feedback.feeds import feeds
from rlhf.feedback.item_table import item_number
from rlhf.feedback.leases import Lease, find_lease, grant, has_place, release
from rlhf.feedback.rater_table import active_rater_row, rater_row
from rlhf.feedback.records import Choice, Purpose, Vote
from rlhf.feedback.settings import read_settings
from rlhf.storage.database import Database

MOST_UNDONE = 20
"""A rater undoes at most this many votes below the rater's largest number of votes."""

_SELECT = """
SELECT votes.id, items.id AS item, raters.alias AS rater, choice, is_swapped, note, seconds, guideline, time,
    is_repeat, is_adjudication, raters.is_suspended, votes.number, votes.item AS item_number, purpose
FROM votes JOIN items ON items.number = votes.item JOIN raters ON raters.number = votes.rater
"""
_FLAGS = ("is_swapped", "is_repeat", "is_adjudication")


class VoteTable(Database):
    """Votes of raters."""

    def add_vote(self, vote: Vote) -> bool:
        """Store a vote and release its rater's lease; False if the same judgement is stored under this id already.

        The lease is checked at ``vote.time``, or now if that is 0.

        Raises:
            UserError: the id belongs to another vote or to one that was undone, the rater is unknown, suspended or
                does not hold the item as the vote says, or the lease expired and the item has enough votes by now.
        """
        with self.writing() as db:
            if _is_stored(db, vote):
                return False
            _require_not_undone(db, vote)
            rater = active_rater_row(db, vote.rater)
            item = item_number(db, vote.item)
            _require_lease(db, vote, rater["number"], item, vote.time or self.clock())
            _insert(db, vote, item, rater["number"], is_suspended=False)
            release(db, rater["number"])
        return True

    def import_votes(self, votes: Iterable[Vote]) -> int:
        """Store votes that were made elsewhere, in one transaction, without leases; return how many are new.

        Imported votes may exceed the overlap. Whether a vote is suspended is decided by its rater in this project.

        Raises:
            UserError: an id belongs to another vote, an item or rater is unknown, or a rater has two votes on an item
                that are no repeat; nothing is stored then.
        """
        new = 0
        with self.writing() as db:
            for vote in votes:
                if not _is_stored(db, vote):
                    rater = rater_row(db, vote.rater)
                    item = item_number(db, vote.item)
                    _insert(db, vote, item, rater["number"], is_suspended=bool(rater["is_suspended"]))
                    new += 1
            if new:
                record(db, self.clock(), "votes imported", detail=str(new))
        return new

    def undo(self, alias: str) -> Vote | None:
        """Remove the rater's newest vote, give the item back to the rater, and return the vote.

        None if there is nothing to undo: no vote, ``MOST_UNDONE`` are undone, the newest vote is on a calibration item
        (its known choice was shown), or other raters have completed a skipped item.

        Raises:
            UserError: the rater is unknown or suspended.
        """
        with self.writing() as db:
            rater = active_rater_row(db, alias)
            row = _newest(db, rater)
            if row is None or not _take_back(db, row, rater["number"], self.clock()):
                return None
            record(db, self.clock(), "vote undone", alias=alias, detail=f"item {row['item']}")
            return _vote(row)

    def votes(self, item: str | None = None, rater: str | None = None) -> list[Vote]:
        """Votes in the order in which they were stored; those on one item, or of one rater, if given."""
        conditions = {"items.id = ?": item, "raters.alias = ?": rater}
        given = {condition: value for condition, value in conditions.items() if value is not None}
        where = f"WHERE {' AND '.join(given)}" if given else ""
        with self.connection() as db:
            rows = db.execute(f"{_SELECT} {where} ORDER BY votes.number", tuple(given.values()))
            return [_vote(row) for row in rows]

    def vote(self, id: str) -> Vote | None:
        """The vote of an id; None if there is none."""
        with self.connection() as db:
            return _find(db, id)


def _find(db: sqlite3.Connection, id: str) -> Vote | None:
    row = db.execute(f"{_SELECT} WHERE votes.id = ?", (id,)).fetchone()
    return _vote(row) if row else None


def _vote(row: sqlite3.Row) -> Vote:
    note = json.loads(row["note"])
    flags = {name: bool(row[name]) for name in (*_FLAGS, "is_suspended")}
    return Vote(
        id=row["id"],
        item=row["item"],
        rater=row["rater"],
        choice=Choice(row["choice"]),
        reasons=tuple(note["reasons"]),
        comment=note["comment"],
        seconds=row["seconds"],
        guideline=row["guideline"],
        time=row["time"],
        **flags,
    )


def _is_stored(db: sqlite3.Connection, vote: Vote) -> bool:
    """Whether the vote is stored. Times and guideline may differ: a client that sends again may measure them again."""
    known = _find(db, vote.id)
    if known is None:
        return False
    again = replace(
        vote, time=known.time, seconds=known.seconds, guideline=known.guideline, is_suspended=known.is_suspended
    )
    if again != known:
        raise UserError(
            f"vote {vote.id} is stored with another content",
            "a vote's id is made once, for one judgement",
            "send the vote with a new id, or undo the stored one first",
        )
    return True


def _require_not_undone(db: sqlite3.Connection, vote: Vote) -> None:
    if db.execute("SELECT 1 FROM undone WHERE id = ?", (vote.id,)).fetchone():
        raise UserError(f"vote {vote.id} was undone", "a late copy of it is not stored again", "vote with a new id")


def _require_lease(db: sqlite3.Connection, vote: Vote, rater: int, item: int, now: float) -> None:
    lease = find_lease(db, rater)
    if lease is None or lease.item != item:
        raise _not_held(vote, "the item was not shown to this rater, or the rater has voted on it")
    if any(getattr(lease, name) != getattr(vote, name) for name in _FLAGS):
        raise _not_held(vote, "it was shown with other sides, or as a repeat or adjudication that the vote is not")
    if not has_place(db, rater, lease, read_settings(db).overlap, now):
        raise _not_held(vote, "the lease expired, and other raters completed the item")


def _not_held(vote: Vote, why: str) -> UserError:
    return UserError(f"rater {vote.rater} does not hold item {vote.item}", why, "continue with the next item")


def _insert(db: sqlite3.Connection, vote: Vote, item: int, rater: int, *, is_suspended: bool) -> None:
    tally = feeds(
        vote.choice, is_repeat=vote.is_repeat, is_adjudication=vote.is_adjudication, is_suspended=is_suspended
    )
    try:
        db.execute(
            "INSERT INTO votes (id, item, rater, choice, is_swapped, seconds, guideline, time, is_repeat,"
            " is_adjudication, note, feeds) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                vote.id,
                item,
                rater,
                vote.choice,
                vote.is_swapped,
                vote.seconds,
                vote.guideline,
                vote.time,
                vote.is_repeat,
                vote.is_adjudication,
                canonical({"reasons": vote.reasons, "comment": vote.comment}),
                tally,
            ),
        )
    except sqlite3.IntegrityError as error:
        raise UserError(
            f"rater {vote.rater} has voted on item {vote.item} already",
            "a rater has one vote on an item, and one repeat",
            "keep one of the votes, or mark the second one as a repeat",
        ) from error


def _newest(db: sqlite3.Connection, rater: sqlite3.Row) -> sqlite3.Row | None:
    if rater["votes"] <= rater["most_votes"] - MOST_UNDONE:
        return None
    row = db.execute(
        f"{_SELECT} WHERE votes.rater = ? ORDER BY votes.number DESC LIMIT 1", (rater["number"],)
    ).fetchone()
    return row if row is not None and row["purpose"] != Purpose.CALIBRATION else None


def _take_back(db: sqlite3.Connection, row: sqlite3.Row, rater: int, now: float) -> bool:
    """Exchange a vote for a lease; False, and nothing changes, if the item has no place for it any more."""
    settings = read_settings(db)
    lease = Lease(item=row["item_number"], **{name: bool(row[name]) for name in _FLAGS})
    db.execute("DELETE FROM votes WHERE number = ?", (row["number"],))
    if not has_place(db, rater, lease, settings.overlap, now):
        db.rollback()
        return False
    db.execute("INSERT INTO undone VALUES (?, ?)", (row["id"], rater))
    grant(db, rater, replace(lease, expires=now + settings.lease_seconds))
    return True
