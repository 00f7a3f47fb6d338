"""What a gateway keeps over a restart, in a SQLite file: counts of live traffic, and answers that may be judged."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing
from pathlib import Path
from typing import TextIO

from rlhf.errors import UserError
from rlhf.serving.live_counts import CountRow
from rlhf.serving.live_kpi import Kpi
from rlhf.serving.recent_answers import AnswerChanges, KeptAnswer, RecentAnswer
from rlhf.storage.database import Database, connect, create_tables, is_sqlite, pragma_value, translated
from rlhf.storage.locking import try_lock

APPLICATION_ID = 0x524C4753
"""Marks a SQLite file as a gateway's state ("RLGS"), see ``PRAGMA application_id``."""
VERSION = 1
SUBJECT = "gateway's state"
SCHEMA = """
CREATE TABLE counts (
    digest TEXT NOT NULL,
    kpi TEXT NOT NULL,
    events INTEGER NOT NULL,
    bad INTEGER NOT NULL,
    PRIMARY KEY (digest, kpi)
);
CREATE TABLE answers (
    id TEXT PRIMARY KEY,
    added REAL NOT NULL,
    request BLOB NOT NULL,
    raw BLOB NOT NULL,
    is_stream INTEGER NOT NULL,
    version TEXT NOT NULL,
    owner TEXT NOT NULL
);
"""
FIX = "set state to another file, which is created"


class GatewayState:
    """The file of one running gateway, which locks it: two would count for each other."""

    def __init__(self, path: Path, clock: Callable[[], float] = time.time) -> None:
        """Open the file; create it, readable by this user only, if there is none.

        Raises:
            UserError: another gateway has it, or it is something else.
        """
        self._lock = _locked(path)
        try:
            _prepare(path)
        except BaseException:
            self._lock.close()
            raise
        self._database, self._clock = Database(path, clock, SUBJECT), clock

    def counts(self) -> list[CountRow]:
        """Counts of all versions so far."""
        with self._database.reading() as db:
            found = db.execute("SELECT digest, kpi, events, bad FROM counts").fetchall()
        known = {str(kpi) for kpi in Kpi}
        return [CountRow(**{**row, "kpi": Kpi(row["kpi"])}) for row in map(dict, found) if row["kpi"] in known]

    def answers(self) -> list[KeptAnswer]:
        """Answers that were kept, oldest first, with their present age."""
        with self._database.reading() as db:
            found = db.execute("SELECT * FROM answers ORDER BY added").fetchall()
        now = self._clock()
        return [
            KeptAnswer(
                id=row["id"],
                age=max(0.0, now - row["added"]),
                answer=RecentAnswer(
                    request=row["request"],
                    raw=row["raw"],
                    is_stream=bool(row["is_stream"]),
                    version=row["version"],
                    owner=row["owner"],
                ),
            )
            for row in found
        ]

    def save(self, counts: Sequence[CountRow], changes: AnswerChanges) -> None:
        """Replace the counts, and follow the answers; a killed process loses none of it.

        Raises:
            MachineryError: the file cannot be written.
        """
        now = self._clock()
        with self._database.writing(is_flushed=False) as db:
            db.executemany(
                "INSERT OR REPLACE INTO counts VALUES (?, ?, ?, ?)",
                [(row.digest, str(row.kpi), row.events, row.bad) for row in counts],
            )
            db.executemany("DELETE FROM answers WHERE id = ?", [(id,) for id in changes.forgotten])
            db.executemany("INSERT OR IGNORE INTO answers VALUES (?, ?, ?, ?, ?, ?, ?)", _rows(changes.added, now))

    def close(self) -> None:
        """Close the file, and unlock it."""
        self._database.close()
        self._lock.close()


def _rows(added: Iterable[KeptAnswer], now: float) -> list[tuple[object, ...]]:
    return [
        (each.id, now - each.age, answer.request, answer.raw, answer.is_stream, answer.version, answer.owner)
        for each in added
        for answer in (each.answer,)
    ]


def _locked(path: Path) -> TextIO:
    try:
        lock = path.with_name(f".{path.name}.lock").open("a", encoding="utf-8")
        is_locked = try_lock(lock)
    except OSError as error:
        raise UserError(f"the {SUBJECT} {path} cannot be written: {error.strerror}", fix=FIX) from error
    if is_locked is False:
        lock.close()
        why = "each gateway counts by itself"
        raise UserError(f"another gateway has the state {path}", why, "set state to another file")
    return lock


def _prepare(path: Path) -> None:
    """Create the tables in a new file; check those of an earlier gateway."""
    try:
        path.touch(mode=0o600, exist_ok=True)
        is_new = not path.stat().st_size
        is_right = is_new or is_sqlite(path)
    except OSError as error:
        raise UserError(f"the {SUBJECT} {path} cannot be written: {error.strerror}", fix=FIX) from error
    if not is_right:
        raise UserError(f"{path} is no {SUBJECT}", "it is no SQLite file", FIX)
    with translated(path, SUBJECT), closing(connect(path)) as db:
        if is_new:
            create_tables(db, SCHEMA, VERSION, APPLICATION_ID)
        found, version = pragma_value(db, "application_id"), pragma_value(db, "user_version")
    if found != APPLICATION_ID:
        raise UserError(f"{path} is no {SUBJECT}", "another program wrote it", FIX)
    if version != VERSION:
        raise UserError(f"{path} has version {version}, and this rlhf reads version {VERSION}", fix="update rlhf")
