"""Users' reactions in production, in the store."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable

from rlhf.errors import UserError
from rlhf.feedback.encoding import canonical, decode_thumb, encode_thumb
from rlhf.feedback.records import Thumb
from rlhf.storage.database import Database


class ThumbTable(Database):
    """Thumbs up and down."""

    def add_thumb(self, thumb: Thumb) -> bool:
        """Store a thumb; False if it is stored under this id already, with whichever time.

        Raises:
            UserError: the id belongs to another thumb.
        """
        return self.import_thumbs([thumb]) == 1

    def import_thumbs(self, thumbs: Iterable[Thumb]) -> int:
        """Store thumbs in one transaction, and return how many are new.

        Raises:
            UserError: as ``add_thumb``; nothing is stored then.
        """
        with self.writing() as db:
            return sum(_add(db, thumb) for thumb in thumbs)

    def thumbs(self) -> list[Thumb]:
        """All thumbs, in the order in which they were stored."""
        with self.connection() as db:
            return [
                decode_thumb(json.loads(row["body"])) for row in db.execute("SELECT body FROM thumbs ORDER BY number")
            ]


def _add(db: sqlite3.Connection, thumb: Thumb) -> bool:
    row = db.execute("SELECT body FROM thumbs WHERE id = ?", (thumb.id,)).fetchone()
    body = canonical(encode_thumb(thumb))
    if row is None:
        db.execute("INSERT INTO thumbs (id, body) VALUES (?, ?)", (thumb.id, body))
        return True
    again = json.loads(body)
    if {**json.loads(row["body"]), "time": again["time"]} != again:
        raise UserError(f"thumb {thumb.id} is stored with another content", "", "send it with a new id")
    return False
