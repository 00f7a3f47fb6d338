"""The versions of a project's guidelines in its store, and which version a rater has acknowledged."""

from __future__ import annotations

from dataclasses import dataclass

from rlhf.errors import UserError
from rlhf.feedback.audit import record
from rlhf.feedback.rater_table import rater_row
from rlhf.storage.database import Database


@dataclass(frozen=True, kw_only=True)
class Guideline:
    """One version of the instructions for raters."""

    version: int
    """Counts from 1."""
    markdown: str
    created: float
    """Unix time in seconds."""


class GuidelineTable(Database):
    """Guidelines and acknowledgements."""

    def add_guideline(self, markdown: str) -> int:
        """Add a version and return its number; the newest version is returned if its text is the same."""
        with self.writing() as db:
            newest = db.execute("SELECT version, markdown FROM guidelines ORDER BY version DESC LIMIT 1").fetchone()
            if newest is not None and newest["markdown"] == markdown:
                return int(newest["version"])
            version = newest["version"] + 1 if newest else 1
            db.execute("INSERT INTO guidelines VALUES (?, ?, ?)", (version, markdown, self.clock()))
            record(db, self.clock(), "guideline added", detail=f"version {version}")
        return version

    def guideline(self, version: int | None = None) -> Guideline | None:
        """A version, or the newest one; None if there is none."""
        query = "SELECT * FROM guidelines WHERE ?1 IS NULL OR version = ?1 ORDER BY version DESC LIMIT 1"
        with self.connection() as db:
            row = db.execute(query, (version,)).fetchone()
        return Guideline(**dict(row)) if row else None

    def guidelines(self) -> list[Guideline]:
        """All versions, oldest first."""
        with self.connection() as db:
            return [Guideline(**dict(row)) for row in db.execute("SELECT * FROM guidelines ORDER BY version")]

    def acknowledge(self, alias: str, version: int) -> None:
        """Record that a rater has read a version.

        Raises:
            UserError: there is no such rater or version.
        """
        with self.writing() as db:
            number = rater_row(db, alias)["number"]
            if db.execute("SELECT 1 FROM guidelines WHERE version = ?", (version,)).fetchone() is None:
                raise UserError(
                    f"there is no version {version} of the guidelines", "", "acknowledge the newest version"
                )
            db.execute("INSERT OR IGNORE INTO acknowledgements VALUES (?, ?, ?)", (number, version, self.clock()))

    def acknowledged(self, alias: str) -> int | None:
        """The newest version that a rater has acknowledged; None if there is none.

        Raises:
            UserError: there is no such rater.
        """
        with self.connection() as db:
            number = rater_row(db, alias)["number"]
            return db.execute("SELECT max(version) FROM acknowledgements WHERE rater = ?", (number,)).fetchone()[0]
