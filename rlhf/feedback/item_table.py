"""The items of a project in its store."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable

from rlhf.errors import UserError
from rlhf.feedback.audit import record
from rlhf.feedback.encoding import canonical, decode_item, encode_item
from rlhf.feedback.records import Item, Purpose
from rlhf.storage.database import Database


def read_item(body: str) -> Item:
    """An item from the column ``body``."""
    return decode_item(json.loads(body))


def item_number(db: sqlite3.Connection, item: str) -> int:
    """Row number of an item.

    Raises:
        UserError: the project has no such item.
    """
    row = db.execute("SELECT number FROM items WHERE id = ?", (item,)).fetchone()
    if row is None:
        raise UserError(f"there is no item {item!r} in the project", "", "add the item before its votes")
    return int(row["number"])


class ItemTable(Database):
    """Items that people compare."""

    def add_items(self, items: Iterable[Item]) -> int:
        """Add items in one transaction, and return how many are new. An item whose id is known is left as it is.

        Raises:
            UserError: a gold or calibration item has no known choice, a label item has one, or a known item has
                another known choice; nothing is added then.
        """
        items = {item.id: item for item in items}.values()
        for item in items:
            _require_gold(item)
        with self.writing() as db:
            new = [item for item in items if not _is_known(db, item)]
            _insert(db, new)
            if new:
                record(db, self.clock(), "items added", detail=str(len(new)))
        return len(new)

    def items(self, purpose: Purpose | None = None, round: str | None = None) -> list[Item]:
        """Items in the order in which they were added; those of one purpose, or one round, if given."""
        query = (
            "SELECT body FROM items WHERE (?1 IS NULL OR purpose = ?1) AND (?2 IS NULL OR round = ?2) ORDER BY number"
        )
        with self.connection() as db:
            return [read_item(row["body"]) for row in db.execute(query, (purpose, round))]

    def round_progress(self, round: str, overlap: int) -> tuple[int, int]:
        """Votes that count on a round's label items, and how many more those items can get."""
        query = (
            "SELECT coalesce(sum(counted), 0) AS votes, "
            "coalesce(sum(CASE WHEN skips < ?2 THEN max(?2 - counted, 0) ELSE 0 END), 0) AS open_slots FROM "
            "(SELECT counted, (SELECT count(*) FROM votes JOIN raters ON raters.number = rater "
            "WHERE item = items.number AND choice = 'skip' AND is_repeat = 0 AND is_suspended = 0) AS skips "
            "FROM items WHERE round = ?1 AND purpose = 'label')"
        )
        with self.connection() as db:
            row = db.execute(query, (round, overlap)).fetchone()
        return row["votes"], row["open_slots"]

    def item(self, id: str) -> Item | None:
        """The item of an id; None if there is none."""
        with self.connection() as db:
            row = db.execute("SELECT body FROM items WHERE id = ?", (id,)).fetchone()
        return read_item(row["body"]) if row else None


def _require_gold(item: Item) -> None:
    if (item.gold is None) == (item.purpose != Purpose.LABEL):
        has = "has no known choice" if item.gold is None else "has a known choice"
        raise UserError(
            f"item {item.id} of purpose {item.purpose} {has}",
            "gold and calibration items are compared with a known choice, label items are not",
            "correct `gold` or `purpose`",
        )


def _is_known(db: sqlite3.Connection, item: Item) -> bool:
    row = db.execute("SELECT body FROM items WHERE id = ?", (item.id,)).fetchone()
    if row is not None and (known := read_item(row["body"]).gold) != item.gold:
        raise UserError(
            f"item {item.id} has the known choice {known} in the project and {item.gold} now",
            "votes were compared with the first one",
            "give the item the same known choice",
        )
    return row is not None


def _insert(db: sqlite3.Connection, items: list[Item]) -> None:
    """Rows keep the given order; the queue has the order of the digests, so that any part of it is a random sample."""
    first = db.execute("SELECT coalesce(max(turn), 0) + 1 FROM items").fetchone()[0]
    turns = {id: turn for turn, id in enumerate(sorted(item.id for item in items), start=first)}
    db.executemany(
        "INSERT INTO items (id, purpose, round, body, turn) VALUES (?, ?, ?, ?, ?)",
        [(item.id, item.purpose, item.round, canonical(encode_item(item)), turns[item.id]) for item in items],
    )
