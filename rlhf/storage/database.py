"""Connections to a SQLite file: transactions for several threads and processes, and their errors.

The file is in WAL mode: readers never wait for the writer. ``synchronous`` is FULL, so that a commit is on the disk: a
vote or a promotion that was acknowledged survives a killed process and a power loss. One flush per commit is affordable
because people vote a few times a minute, and promote a few times a week.
"""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from rlhf.errors import MachineryError

BUSY_SECONDS = 30.0
"""How long a transaction waits for another writer; a write takes milliseconds."""

_MAGIC = b"SQLite format 3\0"

_PRAGMAS = (
    "foreign_keys = ON",
    "synchronous = FULL",
    "secure_delete = ON",  # deleted votes and aliases are overwritten
    "cache_size = -64000",  # KiB: 30,000 items are added three times as fast as with the default
)


class Database:
    """A file and its open connections. Each transaction takes an idle connection or opens one.

    Threads and processes may share a file; a ``Database`` may be shared by threads, not by processes.

    Args:
        clock: Unix time in seconds, for what is dated.
        subject: what the file is, in messages.
    """

    def __init__(self, path: Path, clock: Callable[[], float] = time.time, subject: str = "feedback project") -> None:
        self.path, self.clock, self.subject = path, clock, subject
        self._idle: list[sqlite3.Connection] = []
        self._is_closed = False
        self._writer = threading.Lock()
        """Threads queue here: SQLite's own waiting sleeps for up to 0.1 s at a time, and some wait for seconds."""

    @contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        """A transaction that sees one state of the file, whatever others write meanwhile."""
        with self.connection() as db, _transaction(db, "BEGIN"):
            yield db

    @contextmanager
    def writing(self, *, is_flushed: bool = True) -> Iterator[sqlite3.Connection]:
        """A transaction that excludes other writers from its begin; an exception rolls it back.

        Args:
            is_flushed: whether the end waits until the disk has it. Otherwise it survives a killed process, but perhaps
                no power loss, until the next transaction that is flushed.
        """
        with self._place_in_queue(), self.connection() as db:
            db.execute(f"PRAGMA synchronous = {'FULL' if is_flushed else 'NORMAL'}")
            with _transaction(db, "BEGIN IMMEDIATE"):
                yield db

    @contextmanager
    def connection(self) -> Iterator[sqlite3.Connection]:
        """A connection without a transaction.

        Raises:
            MachineryError: the file cannot be read or written.
        """
        with translated(self.path, self.subject):
            db = self._take()
            try:
                yield db
            finally:
                self._put(db)

    def close(self) -> None:
        """Close all connections. A transaction that is still running closes its own at its end."""
        self._is_closed = True
        while self._idle:
            self._idle.pop().close()

    @contextmanager
    def _place_in_queue(self) -> Iterator[None]:
        with translated(self.path, self.subject):
            if not self._writer.acquire(timeout=BUSY_SECONDS):
                raise sqlite3.OperationalError("database is locked")
        try:
            yield
        finally:
            self._writer.release()

    def _take(self) -> sqlite3.Connection:
        if self._is_closed:
            raise ValueError(f"{self.path} is closed")
        try:
            return self._idle.pop()  # atomic, so threads need no lock
        except IndexError:
            return connect(self.path)

    def _put(self, db: sqlite3.Connection) -> None:
        if self._is_closed:
            db.close()
        else:
            self._idle.append(db)


@contextmanager
def _transaction(db: sqlite3.Connection, begin: str) -> Iterator[None]:
    db.execute(begin)
    try:
        yield
        db.commit()
    except BaseException:
        db.rollback()
        raise


def connect(path: Path) -> sqlite3.Connection:
    """Open an existing file; nothing is written by it."""
    db = sqlite3.connect(
        f"{path.absolute().as_uri()}?mode=rw",
        uri=True,
        timeout=BUSY_SECONDS,
        isolation_level=None,
        check_same_thread=False,
    )
    db.row_factory = sqlite3.Row
    for pragma in _PRAGMAS:
        db.execute(f"PRAGMA {pragma}")
    return db


@contextmanager
def translated(path: Path, subject: str = "feedback project") -> Iterator[None]:
    """Turn SQLite's errors of file and disk into ``MachineryError``; violated constraints are left as they are."""
    try:
        yield
    except sqlite3.IntegrityError:
        raise
    except sqlite3.DatabaseError as error:
        raise MachineryError(
            f"the {subject} {path} cannot be read or written: {error}; "
            "check disk and permissions, and whether another process holds it; restore a backup if it is damaged"
        ) from error


def pragma_value(db: sqlite3.Connection, name: str) -> int:
    """The value of a pragma that is a number, such as ``user_version``."""
    return int(db.execute(f"PRAGMA {name}").fetchone()[0])


def is_sqlite(path: Path) -> bool:
    """Whether a file is a SQLite file, by its first bytes.

    Raises:
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        return file.read(len(_MAGIC)) == _MAGIC


def create_tables(db: sqlite3.Connection, schema: str, version: int, application_id: int) -> None:
    """Create the tables of a new file, all or none, with the marks by which it is known."""
    db.execute("PRAGMA journal_mode = WAL")
    db.execute("BEGIN IMMEDIATE")
    for statement in split_statements(schema):
        db.execute(statement)
    db.execute(f"PRAGMA user_version = {version}")
    db.execute(f"PRAGMA application_id = {application_id}")
    db.commit()


def split_statements(script: str) -> list[str]:
    """Split a script, to run it inside a transaction; ``executescript`` would commit the transaction first."""
    statements, text = [], ""
    for line in script.splitlines(keepends=True):
        text += line
        if sqlite3.complete_statement(text):
            statements.append(text)
            text = ""
    return [statement for statement in statements if statement.strip()]
