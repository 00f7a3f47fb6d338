"""The registry's SQLite file: one table that only grows."""

from __future__ import annotations

import os
import secrets
import sqlite3
from contextlib import closing, suppress
from dataclasses import fields
from pathlib import Path

from rlhf.errors import UserError
from rlhf.serving.audit_chain import RegistryEntry
from rlhf.storage.database import connect, create_tables, is_sqlite, pragma_value, translated
from rlhf.storage.durable import sync

APPLICATION_ID = 0x524C5247
"""Marks a SQLite file as a registry ("RLRG"), see ``PRAGMA application_id``."""
VERSION = 1
SUBJECT = "registry"
COLUMNS = tuple(field.name for field in fields(RegistryEntry))
SCHEMA = """
CREATE TABLE audit (
    number INTEGER PRIMARY KEY,
    time REAL NOT NULL,
    who TEXT NOT NULL,
    action TEXT NOT NULL,
    version TEXT NOT NULL,
    stage TEXT NOT NULL,
    replaces TEXT NOT NULL,
    why TEXT NOT NULL,
    gate TEXT NOT NULL,
    operation TEXT NOT NULL,
    detail TEXT NOT NULL,
    previous TEXT NOT NULL UNIQUE,
    hash TEXT NOT NULL UNIQUE
);
CREATE UNIQUE INDEX audit_operation ON audit (operation) WHERE operation <> '';
CREATE UNIQUE INDEX audit_gate ON audit (gate) WHERE gate <> '';
CREATE TRIGGER audit_never_changes BEFORE UPDATE ON audit BEGIN
    SELECT RAISE(ABORT, 'the audit of a registry is never changed');
END;
CREATE TRIGGER audit_never_shrinks BEFORE DELETE ON audit BEGIN
    SELECT RAISE(ABORT, 'the audit of a registry never shrinks');
END;
CREATE TRIGGER audit_grows_at_its_end BEFORE INSERT ON audit
WHEN NEW.number IS NOT (SELECT coalesce(max(number), 0) + 1 FROM audit)
BEGIN
    SELECT RAISE(ABORT, 'the audit of a registry grows at its end');
END;
"""
"""The third trigger also stops INSERT OR REPLACE, which deletes rows without the trigger of a deletion."""


def create_file(path: Path) -> bool:
    """Create an empty registry; returns False if there is a file already, which stays as it is.

    It appears whole: a killed process leaves no half of one at ``path``.

    Raises:
        UserError: no file can be written there.
    """
    partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial")
    try:
        partial.touch(exist_ok=False)
        with translated(partial, SUBJECT), closing(connect(partial)) as db:
            create_tables(db, SCHEMA, VERSION, APPLICATION_ID)
        os.link(partial, path)  # unlike a rename, it fails if the file exists
        sync(path.parent)
    except FileExistsError:
        return False
    except OSError as error:
        raise UserError(
            f"the registry {path} cannot be created: {error.strerror}", fix="name a file in a folder you can write to"
        ) from error
    finally:
        with suppress(OSError):  # the folder may be one that nobody can write to
            partial.unlink()
    return True


def require_registry(path: Path) -> None:
    """Check that a file is a registry that this version reads.

    Raises:
        UserError: it is not.
    """
    fix = "give the file of a registry; `rlhf registry register` creates one"
    try:
        is_right = is_sqlite(path)
    except OSError as error:
        raise UserError(f"the registry {path} cannot be read: {error.strerror}", fix=fix) from error
    if not is_right:
        raise UserError(f"{path} is no registry", "it is no SQLite file", fix)
    with translated(path, SUBJECT), closing(connect(path)) as db:
        found, version = pragma_value(db, "application_id"), pragma_value(db, "user_version")
    if found != APPLICATION_ID:
        raise UserError(f"{path} is no registry", "another program wrote it", fix)
    if version != VERSION:
        raise UserError(f"{path} has version {version}, and this rlhf reads version {VERSION}", fix="update rlhf")


def read_rows(db: sqlite3.Connection) -> list[sqlite3.Row]:
    """All audit entries in their order."""
    return db.execute(f"SELECT {', '.join(COLUMNS)} FROM audit ORDER BY number").fetchall()
