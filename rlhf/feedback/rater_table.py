"""The raters of a project in its store: aliases only, suspension, deletion."""

from __future__ import annotations

import re
import sqlite3
from dataclasses import dataclass

from rlhf.errors import UserError
from rlhf.feedback.audit import record
from rlhf.feedback.feeds import recount
from rlhf.storage.database import Database

_ALIAS = re.compile(r"[A-Za-z0-9._-]{1,40}")
_IMPORTED_ALIAS = re.compile(r"[A-Za-z0-9._:-]{1,40}")


@dataclass(frozen=True, kw_only=True)
class Rater:
    """A person, or an imported source of votes, known by an alias only."""

    alias: str
    is_adjudicator: bool
    """Decides items whose raters disagree, and labels no others."""
    is_imported: bool
    """The votes come from a file; the rater cannot enter the labelling page."""
    is_suspended: bool
    suspension_reason: str
    created: float
    """Unix time in seconds."""
    votes: int
    """Number of all votes, with repeats, skips, and votes on gold and calibration items."""


_COLUMNS = "alias, is_adjudicator, is_imported, is_suspended, suspension_reason, created, votes"


def rater_row(db: sqlite3.Connection, alias: str) -> sqlite3.Row:
    """The row of a rater in ``raters``.

    Raises:
        UserError: the project has no such rater.
    """
    row = db.execute("SELECT * FROM raters WHERE alias = ?", (alias,)).fetchone()
    if row is None:
        raise UserError(
            f"there is no rater {alias!r} in the project",
            "",
            "correct the alias (`rlhf feedback status` lists all), or add the rater by `rlhf feedback token`",
        )
    return row


def active_rater_row(db: sqlite3.Connection, alias: str) -> sqlite3.Row:
    """The row of a rater who may vote.

    Raises:
        UserError: the project has no such rater, or the rater is suspended or imported.
    """
    row = rater_row(db, alias)
    if row["is_suspended"]:
        raise UserError(f"rater {alias} is suspended", row["suspension_reason"], "reinstate the rater to continue")
    if row["is_imported"]:
        raise UserError(f"rater {alias} is imported", "imported raters do not label", "use another alias")
    return row


class RaterTable(Database):
    """Raters of a project."""

    def add_rater(self, alias: str, *, is_adjudicator: bool = False, is_imported: bool = False) -> bool:
        """Add a rater; False if the same rater is there already.

        Args:
            alias: 1 to 40 letters, digits, dots, dashes and underscores, and colons if the rater is imported. Never a
                person's name or address.

        Raises:
            UserError: the alias has other characters, or is a rater with other properties.
        """
        require_alias(alias, is_imported=is_imported)
        with self.writing() as db:
            known = db.execute("SELECT * FROM raters WHERE alias = ?", (alias,)).fetchone()
            if known is not None:
                _require_same(known, is_adjudicator, is_imported)
                return False
            db.execute(
                "INSERT INTO raters (alias, is_adjudicator, is_imported, created) VALUES (?, ?, ?, ?)",
                (alias, is_adjudicator, is_imported, self.clock()),
            )
            record(db, self.clock(), "rater added", alias=alias)
        return True

    def raters(self) -> list[Rater]:
        """All raters, in the order in which they were added."""
        with self.connection() as db:
            return [_rater(row) for row in db.execute(f"SELECT {_COLUMNS} FROM raters ORDER BY number")]

    def rater(self, alias: str) -> Rater | None:
        """The rater of an alias; None if there is none."""
        with self.connection() as db:
            row = db.execute(f"SELECT {_COLUMNS} FROM raters WHERE alias = ?", (alias,)).fetchone()
        return _rater(row) if row else None

    def suspend(self, alias: str, reason: str) -> None:
        """Suspend a rater: the votes stay, marked, and are replaced by other raters' votes on the same items.

        Raises:
            UserError: there is no such rater.
        """
        with self.writing() as db:
            number = rater_row(db, alias)["number"]
            db.execute("UPDATE raters SET is_suspended = 1, suspension_reason = ? WHERE number = ?", (reason, number))
            db.execute("DELETE FROM leases WHERE rater = ?", (number,))
            recount(db, number)
            record(db, self.clock(), "rater suspended", alias=alias, detail=reason)

    def reinstate(self, alias: str) -> None:
        """End a suspension: all votes of the rater count again, beside those that replaced them.

        Raises:
            UserError: there is no such rater.
        """
        with self.writing() as db:
            number = rater_row(db, alias)["number"]
            db.execute("UPDATE raters SET is_suspended = 0, suspension_reason = '' WHERE number = ?", (number,))
            recount(db, number)
            record(db, self.clock(), "rater reinstated", alias=alias)

    def delete_rater(self, alias: str) -> int:
        """Remove a rater with all votes, comments, acknowledgements and tokens, and return the number of votes.

        The audit keeps that a rater was deleted, and the number. The file is rewritten, so that it holds no trace of
        the alias; backups and exports that were made before keep it.

        Raises:
            UserError: there is no such rater.
        """
        with self.writing() as db:
            number = rater_row(db, alias)["number"]
            removed = db.execute("DELETE FROM votes WHERE rater = ?", (number,)).rowcount
            for table in ("leases", "cursors", "acknowledgements", "undone"):
                db.execute(f"DELETE FROM {table} WHERE rater = ?", (number,))
            db.execute("DELETE FROM raters WHERE number = ?", (number,))
            db.execute("DELETE FROM access WHERE alias = ?", (alias,))
            db.execute("UPDATE audit SET alias = '', detail = '' WHERE alias = ?", (alias,))
            record(db, self.clock(), "rater deleted", detail=f"{removed} votes")
        self._rewrite()
        return removed

    def _rewrite(self) -> None:
        """Pages that SQLite freed or rebalanced may hold deleted text: copy the live rows only, and empty the WAL."""
        with self.connection() as db:
            db.execute("VACUUM")
            db.execute("PRAGMA wal_checkpoint(TRUNCATE)")


def _rater(row: sqlite3.Row) -> Rater:
    flags = {name: bool(row[name]) for name in ("is_adjudicator", "is_imported", "is_suspended")}
    return Rater(**{**dict(row), **flags})


def require_alias(alias: str, *, is_imported: bool) -> None:
    """Check the form of an alias.

    Raises:
        UserError: it has other characters than those of an alias, or more than 40.
    """
    if not (_IMPORTED_ALIAS if is_imported else _ALIAS).fullmatch(alias):
        raise UserError(
            f"{alias!r} is no alias of a rater",
            "an alias has 1 to 40 letters, digits, dots, dashes and underscores, and is no address",
            "use an alias such as rater-07",
        )


def _require_same(known: sqlite3.Row, is_adjudicator: bool, is_imported: bool) -> None:
    if (bool(known["is_adjudicator"]), bool(known["is_imported"])) != (is_adjudicator, is_imported):
        raise UserError(
            f"rater {known['alias']} exists with other properties",
            f"is_adjudicator is {bool(known['is_adjudicator'])}, is_imported is {bool(known['is_imported'])}",
            "use another alias",
        )
