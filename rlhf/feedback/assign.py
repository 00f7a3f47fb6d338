"""Who labels which item next.

``next_item`` decides in one write transaction, so that two raters never take the last place of an item. The order:

1. the item that the rater holds, if it still needs votes;
2. an adjudicator: a complete item whose votes disagree, and nothing else;
3. calibration items, in the order in which they were added;
4. for a fraction of the rater's items, chosen by hash of rater and number: a gold item, or a repeat of an earlier item;
5. label items, those with the most votes first, so that items become complete before new ones are begun. An item that
   more raters than the overlap have skipped is not shown again.

Sides are a function of the project's seed, the rater and the item; checks of seed, rater and the number of votes.

Finding a label item costs the same in the first and in the last hour: for each number of votes a cursor remembers, for
each rater, up to which turn of the queue the rater has judged all items. An item that changes goes to the queue's end.
"""

from __future__ import annotations

import hashlib
import sqlite3
from dataclasses import dataclass, replace

from rlhf.feedback.item_table import read_item
from rlhf.feedback.leases import Lease, find_lease, grant, has_place
from rlhf.feedback.progress import lowest_dispute
from rlhf.feedback.rater_table import active_rater_row
from rlhf.feedback.records import Item
from rlhf.feedback.settings import ProjectSettings, read_settings
from rlhf.feedback.store import Store

REPEAT_GAP = 10
"""Votes between an item and its repeat, so that the rater does not remember the first judgement."""

_CALIBRATION = """
SELECT number, id FROM
    (SELECT number, id FROM items WHERE purpose = 'calibration' ORDER BY number LIMIT :count) AS first
WHERE NOT EXISTS (SELECT 1 FROM votes WHERE rater = :rater AND item = first.number) ORDER BY number LIMIT 1
"""
_GOLD = """
SELECT number, id FROM items WHERE purpose = 'gold'
AND NOT EXISTS (SELECT 1 FROM votes WHERE rater = :rater AND item = items.number)
"""
_QUEUE = """
SELECT number, id, turn,
    EXISTS (SELECT 1 FROM votes WHERE rater = :rater AND item = items.number)
    OR (SELECT count(*) FROM votes JOIN raters ON raters.number = rater
        WHERE item = items.number AND choice = 'skip' AND is_repeat = 0 AND is_suspended = 0) > :overlap AS is_done,
    (SELECT count(*) FROM leases
        WHERE item = items.number AND expires > :now AND is_repeat = 0 AND is_adjudication = 0) AS held
FROM items WHERE purpose = 'label' AND counted = :level AND turn > :turn ORDER BY turn
"""
_DISPUTED = """
SELECT number, id FROM items INDEXED BY items_dispute
WHERE purpose = 'label' AND dispute > 0 AND counted >= :overlap AND dispute >= :lowest
AND NOT EXISTS (SELECT 1 FROM votes WHERE rater = :rater AND item = items.number)
AND NOT EXISTS (SELECT 1 FROM leases WHERE item = items.number AND is_adjudication = 1 AND expires > :now)
ORDER BY counted, turn LIMIT 1
"""
_REPEATABLE = """
SELECT item, is_swapped FROM votes WHERE rater = :rater AND number >= :number AND number <= :last
AND is_repeat = 0 AND is_adjudication = 0 AND choice <> 'skip'
AND (SELECT purpose FROM items WHERE number = votes.item) = 'label'
AND NOT EXISTS (SELECT 1 FROM votes AS again WHERE again.rater = :rater AND again.item = votes.item AND again.is_repeat)
ORDER BY number LIMIT 1
"""


@dataclass(frozen=True, kw_only=True)
class AssignedItem:
    """An item for a rater, and how to show it. The rater must see neither the flags nor the item's purpose."""

    item: Item
    is_swapped: bool
    """Show the second answer on the left (on top, on a phone)."""
    is_repeat: bool
    is_adjudication: bool
    done: int
    """Votes that the rater has given so far."""


@dataclass(frozen=True, kw_only=True)
class _Turn:
    """One rater's request."""

    db: sqlite3.Connection
    rater: int
    alias: str
    done: int
    now: float
    seed: str
    settings: ProjectSettings

    def hash(self, *words: object) -> int:
        """64 bits that depend on the project's seed, the rater and the words."""
        text = "\0".join(map(str, (self.seed, self.alias, *words)))
        return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")

    def fraction(self, *words: object) -> float:
        """The hash as a number in [0, 1)."""
        return self.hash(*words) / 2**64


def next_item(store: Store, rater: str, now: float) -> AssignedItem | None:
    """The item that a rater judges next, reserved for the rater until its lease expires; None if there is none.

    A second call returns the same item, with a new expiry.

    Args:
        rater: alias.
        now: Unix time in seconds.

    Raises:
        UserError: the rater is unknown, suspended or imported.
    """
    with store.writing(is_flushed=False) as db:  # a lost lease is granted again
        row = active_rater_row(db, rater)
        turn = _turn(db, row, now)
        lease = _held(turn) or (_disputed(turn) if row["is_adjudicator"] else _labelled(turn))
        if lease is None:
            return None
        grant(db, turn.rater, replace(lease, expires=now + turn.settings.lease_seconds))
        return _assignment(turn, lease)


def held_item(store: Store, rater: str, now: float) -> AssignedItem | None:
    """The item that a rater holds, without a change of its expiry; None if there is none.

    Raises:
        UserError: the rater is unknown, suspended or imported.
    """
    with store.reading() as db:
        turn = _turn(db, active_rater_row(db, rater), now)
        lease = _held(turn)
        return None if lease is None else _assignment(turn, lease)


def _turn(db: sqlite3.Connection, row: sqlite3.Row, now: float) -> _Turn:
    return _Turn(
        db=db,
        rater=row["number"],
        alias=row["alias"],
        done=row["votes"],
        now=now,
        seed=db.execute("SELECT value FROM meta WHERE key = 'seed'").fetchone()["value"],
        settings=read_settings(db),
    )


def _assignment(turn: _Turn, lease: Lease) -> AssignedItem:
    body = turn.db.execute("SELECT body FROM items WHERE number = ?", (lease.item,)).fetchone()["body"]
    return AssignedItem(
        item=read_item(body),
        is_swapped=lease.is_swapped,
        is_repeat=lease.is_repeat,
        is_adjudication=lease.is_adjudication,
        done=turn.done,
    )


def _held(turn: _Turn) -> Lease | None:
    lease = find_lease(turn.db, turn.rater)
    if lease is None or not has_place(turn.db, turn.rater, lease, turn.settings.overlap, turn.now):
        return None
    return lease


def _disputed(turn: _Turn) -> Lease | None:
    row = turn.db.execute(
        _DISPUTED,
        {
            "overlap": turn.settings.overlap,
            "lowest": lowest_dispute(turn.settings.disagreement_to_adjudicate),
            "rater": turn.rater,
            "now": turn.now,
        },
    ).fetchone()
    return None if row is None else replace(_shown(turn, row), is_adjudication=True)


def _labelled(turn: _Turn) -> Lease | None:
    """Checks are mixed in only while label items remain: a rater who is done is not kept by checks."""
    if (item := _calibration(turn)) is not None:
        return _shown(turn, item)
    if (item := _from_queue(turn)) is None:
        return None
    return _check(turn) or _shown(turn, item)


def _shown(turn: _Turn, item: sqlite3.Row) -> Lease:
    return Lease(item=item["number"], is_swapped=turn.hash("side", item["id"]) % 2 == 1)


def _calibration(turn: _Turn) -> sqlite3.Row | None:
    values = {"count": turn.settings.calibration_items, "rater": turn.rater}
    return turn.db.execute(_CALIBRATION, values).fetchone()


def _check(turn: _Turn) -> Lease | None:
    """A gold item or a repeat, if the rater's number of votes draws one and there is one."""
    drawn = turn.fraction("check", turn.done)
    if drawn < turn.settings.gold_fraction:
        return _gold(turn)
    if drawn < turn.settings.gold_fraction + turn.settings.repeat_fraction:
        return _repeat(turn)
    return None


def _gold(turn: _Turn) -> Lease | None:
    """Each rater sees the gold items in another order, so that raters cannot find them by comparing notes."""
    rows = turn.db.execute(_GOLD, {"rater": turn.rater}).fetchall()
    if not rows:
        return None
    return _shown(turn, min(rows, key=lambda row: turn.hash("gold", row["id"])))


def _repeat(turn: _Turn) -> Lease | None:
    """An earlier label item of the rater, from a random vote on, with the sides exchanged."""
    ends = turn.db.execute(
        "SELECT (SELECT min(number) FROM votes WHERE rater = :rater) AS first, number AS last FROM votes"
        " WHERE rater = :rater ORDER BY number DESC LIMIT 1 OFFSET :gap",
        {"rater": turn.rater, "gap": REPEAT_GAP},
    ).fetchone()
    if ends is None:
        return None
    start = ends["first"] + turn.hash("repeat", turn.done) % (ends["last"] - ends["first"] + 1)
    for number in (start, ends["first"]):
        values = {"rater": turn.rater, "number": number, "last": ends["last"]}
        if (row := turn.db.execute(_REPEATABLE, values).fetchone()) is not None:
            return Lease(item=row["item"], is_swapped=not row["is_swapped"], is_repeat=True)
    return None


def _from_queue(turn: _Turn) -> sqlite3.Row | None:
    """The first label item that needs a vote of the rater, those with the most votes first."""
    for level in reversed(range(turn.settings.overlap)):
        if (item := _from_level(turn, level)) is not None:
            return item
    return None


def _from_level(turn: _Turn, level: int) -> sqlite3.Row | None:
    """The first item with ``level`` votes that the rater may judge; moves the cursor past items that the rater has."""
    start = cursor = _cursor(turn, level)
    values = {"rater": turn.rater, "overlap": turn.settings.overlap, "now": turn.now, "level": level, "turn": start}
    found, is_passing = None, True
    for row in turn.db.execute(_QUEUE, values):
        if row["is_done"]:
            cursor = row["turn"] if is_passing else cursor
        elif level + row["held"] < turn.settings.overlap:
            found = row
            break
        else:
            is_passing = False  # a held item may become free: the cursor stays before it
    if cursor != start:
        turn.db.execute("INSERT OR REPLACE INTO cursors VALUES (?, ?, ?)", (turn.rater, level, cursor))
    return found


def _cursor(turn: _Turn, level: int) -> int:
    row = turn.db.execute("SELECT turn FROM cursors WHERE rater = ? AND level = ?", (turn.rater, level)).fetchone()
    return 0 if row is None else row["turn"]
