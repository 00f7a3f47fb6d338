"""The store of a feedback project: one SQLite file with items, raters, guidelines, votes, thumbs and an audit.

Every change is one transaction, so that a killed process loses at most the vote that it was writing. Several threads
and processes may use a file at the same time, on one machine: SQLite's WAL mode needs a local file system.
"""

from __future__ import annotations

import os
import secrets
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self

from rlhf.errors import UserError
from rlhf.feedback.audit import AuditTable, record
from rlhf.feedback.guideline_table import GuidelineTable
from rlhf.feedback.item_table import ItemTable
from rlhf.feedback.progress import Counts, count_all
from rlhf.feedback.rater_table import RaterTable
from rlhf.feedback.schema import is_current, migrate, require_project, require_sqlite
from rlhf.feedback.settings import ProjectSettings, read_settings, write_settings
from rlhf.feedback.soundness import content_digest, find_faults
from rlhf.feedback.thumb_table import ThumbTable
from rlhf.feedback.vote_table import VoteTable
from rlhf.storage.database import Database, translated


class Store(ItemTable, RaterTable, GuidelineTable, VoteTable, ThumbTable, AuditTable):
    """A feedback project. Make one by ``create`` or ``open``, and use it as a context manager or close it."""

    @classmethod
    def create(
        cls,
        path: str | Path,
        settings: ProjectSettings | None = None,
        *,
        seed: int | None = None,
        clock: Callable[[], float] = time.time,
    ) -> Store:
        """Create a project's file, readable by its owner alone, because it holds the key of the raters' tokens.

        Args:
            seed: decides sides, checks and repeats; random if None, so that raters cannot compute which items are
                checks.

        Raises:
            UserError: there is such a file, or its folder is missing or cannot be written.
        """
        path = Path(path)
        _reserve(path)
        try:
            _fill(path, settings or ProjectSettings(), secrets.randbits(62) if seed is None else seed)
        except BaseException:
            path.unlink()
            raise
        return cls(path, clock)

    @classmethod
    def open(cls, path: str | Path, *, clock: Callable[[], float] = time.time) -> Store:
        """Open a project's file; one of an older version is migrated.

        Raises:
            UserError: there is no such file, it is no feedback project, or of a newer version; nothing is written then.
        """
        path = Path(path)
        require_sqlite(path)
        store = cls(path, clock)
        with store.connection() as db:
            require_project(db, path)
        store._migrate()
        return store

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    @property
    def settings(self) -> ProjectSettings:
        """The project's settings, as they are in the file now."""
        with self.connection() as db:
            return read_settings(db)

    def set_settings(self, settings: ProjectSettings) -> None:
        """Replace the settings; items that are held stay held."""
        with self.writing() as db:
            write_settings(db, settings)
            db.execute("DELETE FROM cursors")  # items that were complete may be open again
            record(db, self.clock(), "settings changed", detail=repr(settings))

    def counts(self) -> Counts:
        """Progress of the project."""
        with self.reading() as db:
            return count_all(db)

    def digest(self) -> str:
        """SHA-256 of all that training reads: items, votes, suspensions, adjudications and thumbs.

        Independent of the order of insertion, of the ids of votes and thumbs, and of times and comments.
        """
        with self.reading() as db:
            return content_digest(db)

    def check(self) -> list[str]:
        """Faults of the file: damaged pages, broken references, tallies that differ from the votes; empty if sound."""
        with self.reading() as db:
            return find_faults(db)

    def backup(self, path: str | Path) -> None:
        """Write a copy of the project as of now, while others work, readable by its owner alone.

        Raises:
            UserError: there is such a file, or its folder is missing or cannot be written.
        """
        path = Path(path)
        _reserve(path)
        try:
            with self.connection() as db, translated(path):
                copy = sqlite3.connect(path)
                try:
                    db.backup(copy)
                finally:
                    copy.close()
        except BaseException:
            path.unlink()
            raise

    def _migrate(self) -> None:
        with self.connection() as db:
            if is_current(db):
                return
        with self.writing() as db:
            migrate(db)
            record(db, self.clock(), "schema migrated")


def _reserve(path: Path) -> None:
    """Create an empty file of mode 0600; SQLite gives its WAL the same mode."""
    try:
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
    except FileExistsError as error:
        raise UserError(f"{path} exists", "a project is never overwritten", "choose another name") from error
    except OSError as error:
        raise UserError(
            f"{path} cannot be created: {error.strerror}", "", "choose a folder that you can write"
        ) from error


def _fill(path: Path, settings: ProjectSettings, seed: int) -> None:
    database = Database(path)
    with database.connection() as db:
        db.execute("PRAGMA journal_mode = WAL")
    with database.writing() as db:
        migrate(db)
        write_settings(db, settings)
        db.executemany(
            "INSERT INTO meta VALUES (?, ?)",
            [("seed", str(seed)), ("project", secrets.token_hex(8)), ("secret", secrets.token_hex(32))],
        )
    database.close()
