"""Tables of a project's SQLite file, their versions, and the migrations between them.

``items`` carries tallies that triggers keep equal to the votes, so that the next item is found by an index and not by
counting. A vote's ``feeds`` names the tally that it belongs to; repeats, skips and votes of suspended raters feed none.
``turn`` is the position of an item in the queue: unique, and larger after every change of the item's votes.
"""

from __future__ import annotations

import sqlite3
from pathlib import Path

from rlhf.errors import UserError
from rlhf.storage.database import is_sqlite, pragma_value, split_statements

APPLICATION_ID = 0x524C4846
"""Marks a SQLite file as a feedback project ("RLHF"), see ``PRAGMA application_id``."""

_VERSION_1 = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE items (
    number INTEGER PRIMARY KEY,
    id TEXT NOT NULL UNIQUE,
    purpose TEXT NOT NULL,
    round TEXT NOT NULL,
    body TEXT NOT NULL,
    turn INTEGER NOT NULL UNIQUE,
    first INTEGER NOT NULL DEFAULT 0,
    second INTEGER NOT NULL DEFAULT 0,
    neither INTEGER NOT NULL DEFAULT 0,
    adjudications INTEGER NOT NULL DEFAULT 0,
    counted INTEGER AS (first + second + neither) VIRTUAL,
    dispute INTEGER AS (
        CASE WHEN adjudications > 0 OR first + second + neither = 0 THEN 0
             WHEN max(first, second, neither) * 2 <= first + second + neither THEN 2
             WHEN first > 0 AND second > 0 THEN 1
             ELSE 0 END
    ) VIRTUAL
);
CREATE INDEX items_queue ON items (purpose, counted, turn);
CREATE INDEX items_round ON items (round);
CREATE INDEX items_dispute ON items (counted, turn) WHERE purpose = 'label' AND dispute > 0;
CREATE TABLE raters (
    number INTEGER PRIMARY KEY,
    alias TEXT NOT NULL UNIQUE,
    is_adjudicator INTEGER NOT NULL,
    is_imported INTEGER NOT NULL,
    is_suspended INTEGER NOT NULL DEFAULT 0,
    suspension_reason TEXT NOT NULL DEFAULT '',
    created REAL NOT NULL,
    votes INTEGER NOT NULL DEFAULT 0,
    most_votes INTEGER NOT NULL DEFAULT 0
);
CREATE TABLE votes (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL UNIQUE,
    item INTEGER NOT NULL REFERENCES items,
    rater INTEGER NOT NULL REFERENCES raters,
    choice TEXT NOT NULL,
    is_swapped INTEGER NOT NULL,
    seconds REAL,
    guideline INTEGER,
    time REAL NOT NULL,
    is_repeat INTEGER NOT NULL,
    is_adjudication INTEGER NOT NULL,
    note TEXT NOT NULL,
    feeds TEXT NOT NULL,
    UNIQUE (rater, item, is_repeat, is_adjudication)
);
CREATE INDEX votes_item ON votes (item, choice);
CREATE INDEX votes_rater ON votes (rater, number);
CREATE TABLE leases (
    rater INTEGER PRIMARY KEY REFERENCES raters,
    item INTEGER NOT NULL REFERENCES items,
    is_swapped INTEGER NOT NULL,
    is_repeat INTEGER NOT NULL,
    is_adjudication INTEGER NOT NULL,
    expires REAL NOT NULL
);
CREATE INDEX leases_item ON leases (item);
CREATE TABLE cursors (
    rater INTEGER NOT NULL REFERENCES raters,
    level INTEGER NOT NULL,
    turn INTEGER NOT NULL,
    PRIMARY KEY (rater, level)
) WITHOUT ROWID;
CREATE TABLE guidelines (version INTEGER PRIMARY KEY, markdown TEXT NOT NULL, created REAL NOT NULL);
CREATE TABLE acknowledgements (
    rater INTEGER NOT NULL REFERENCES raters,
    version INTEGER NOT NULL REFERENCES guidelines,
    time REAL NOT NULL,
    PRIMARY KEY (rater, version)
) WITHOUT ROWID;
CREATE TABLE audit (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    time REAL NOT NULL,
    action TEXT NOT NULL,
    alias TEXT NOT NULL,
    detail TEXT NOT NULL
);
CREATE INDEX audit_alias ON audit (alias);
CREATE TRIGGER vote_added AFTER INSERT ON votes BEGIN
    UPDATE items SET
        first = first + (NEW.feeds = 'first'),
        second = second + (NEW.feeds = 'second'),
        neither = neither + (NEW.feeds = 'neither'),
        adjudications = adjudications + (NEW.feeds = 'adjudication'),
        turn = (SELECT max(turn) + 1 FROM items)
    WHERE number = NEW.item;
    UPDATE raters SET votes = votes + 1, most_votes = max(most_votes, votes + 1) WHERE number = NEW.rater;
END;
CREATE TRIGGER vote_removed AFTER DELETE ON votes BEGIN
    UPDATE items SET
        first = first - (OLD.feeds = 'first'),
        second = second - (OLD.feeds = 'second'),
        neither = neither - (OLD.feeds = 'neither'),
        adjudications = adjudications - (OLD.feeds = 'adjudication'),
        turn = (SELECT max(turn) + 1 FROM items)
    WHERE number = OLD.item;
    UPDATE raters SET votes = votes - 1 WHERE number = OLD.rater;
END;
CREATE TRIGGER vote_recounted AFTER UPDATE OF feeds ON votes BEGIN
    UPDATE items SET
        first = first + (NEW.feeds = 'first') - (OLD.feeds = 'first'),
        second = second + (NEW.feeds = 'second') - (OLD.feeds = 'second'),
        neither = neither + (NEW.feeds = 'neither') - (OLD.feeds = 'neither'),
        adjudications = adjudications + (NEW.feeds = 'adjudication') - (OLD.feeds = 'adjudication'),
        turn = (SELECT max(turn) + 1 FROM items)
    WHERE number = NEW.item;
END;
"""

_VERSION_2 = """
CREATE TABLE thumbs (number INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, body TEXT NOT NULL);
CREATE TABLE undone (id TEXT PRIMARY KEY, rater INTEGER NOT NULL REFERENCES raters) WITHOUT ROWID;
CREATE INDEX undone_rater ON undone (rater);
CREATE TABLE access (alias TEXT PRIMARY KEY, role TEXT NOT NULL, serial TEXT NOT NULL) WITHOUT ROWID;
"""

MIGRATIONS = (_VERSION_1, _VERSION_2)
"""``MIGRATIONS[n]`` brings version n to n + 1. A released entry never changes; the schema changes by a new entry."""
VERSION = len(MIGRATIONS)


def require_project(db: sqlite3.Connection, path: Path) -> None:
    """Check, without writing, that an open file is a feedback project that this version can read.

    Raises:
        UserError: it is another program's file, or of a newer version.
    """
    version = pragma_value(db, "user_version")
    if pragma_value(db, "application_id") != APPLICATION_ID or version < 1:
        raise _not_a_project(path, "another program wrote it")
    if version > VERSION:
        raise UserError(
            f"{path} has schema version {version}, and this version of rlhf reads up to {VERSION}",
            "a newer version of rlhf wrote it",
            "update rlhf, or open a backup that was made before the file was migrated",
        )


def require_sqlite(path: Path) -> None:
    """Check that a path is a SQLite file, by its first bytes.

    Raises:
        UserError: there is no such file, or it cannot be read, or is of another kind.
    """
    try:
        is_right = is_sqlite(path)
    except OSError as error:
        raise UserError(
            f"{path} cannot be read: {error.strerror}",
            "",
            "correct the path, or create a project by `rlhf feedback init`",
        ) from error
    if not is_right:
        raise _not_a_project(path, "it is no SQLite file, or its creation was interrupted")


def _not_a_project(path: Path, why: str) -> UserError:
    return UserError(f"{path} is no feedback project", why, "give a file that `rlhf feedback init` wrote")


def migrate(db: sqlite3.Connection) -> None:
    """Bring the schema to ``VERSION``, inside the caller's write transaction; an empty file gets all tables."""
    for version in range(pragma_value(db, "user_version"), VERSION):
        for statement in split_statements(MIGRATIONS[version]):
            db.execute(statement)
        db.execute(f"PRAGMA user_version = {version + 1}")
    db.execute(f"PRAGMA application_id = {APPLICATION_ID}")


def is_current(db: sqlite3.Connection) -> bool:
    """Whether the schema needs no migration."""
    return pragma_value(db, "user_version") == VERSION
