"""Tables about a project, and those about its progress, for the status page, its JSON, and the command line."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from rlhf.feedback.records import Choice, Purpose, Vote
from rlhf.feedback.store import Store

Cell = str | int | float | None


@dataclass(frozen=True, kw_only=True)
class Table:
    """A table of a status."""

    name: str
    """Its key in JSON."""
    title: str
    columns: tuple[str, ...]
    rows: Sequence[tuple[Cell, ...]]
    note: str = ""

    def as_json(self) -> list[dict[str, Cell]]:
        """The rows as objects."""
        return [dict(zip(self.columns, row, strict=True)) for row in self.rows]


StatusSource = Callable[[Store], Iterable[Table]]
"""Computes tables from a project, such as agreement or the raters' flags."""


def read_status(store: Store, sources: Iterable[StatusSource] = ()) -> list[Table]:
    """All tables: progress, raters, and those of ``sources``."""
    return [progress_table(store), rater_table(store), *(table for source in sources for table in source(store))]


def as_json(tables: Iterable[Table]) -> dict[str, list[dict[str, Cell]]]:
    """Tables by name."""
    return {table.name: table.as_json() for table in tables}


def progress_table(store: Store) -> Table:
    """How many items and votes there are, and how many items are complete."""
    counts, guideline = store.counts(), store.guideline()
    rows: list[tuple[Cell, ...]] = [
        ("items to label", counts.items[Purpose.LABEL]),
        ("complete", counts.complete),
        ("begun", counts.started),
        ("votes per item", store.settings.overlap),
        ("gold items", counts.items[Purpose.GOLD]),
        ("calibration items", counts.items[Purpose.CALIBRATION]),
        ("votes", counts.votes),
        ("awaiting an adjudicator", counts.disputed),
        ("adjudicated", counts.adjudicated),
        ("thumbs from production", counts.thumbs),
        ("version of the guidelines", guideline.version if guideline else None),
    ]
    return Table(name="progress", title="Progress", columns=("what", "number"), rows=rows)


def rater_table(store: Store) -> Table:
    """What each rater has done."""
    votes = defaultdict[str, list[Vote]](list)
    for vote in store.votes():
        votes[vote.rater].append(vote)
    rows: list[tuple[Cell, ...]] = [
        (
            rater.alias,
            "adjudicator" if rater.is_adjudicator else "imported" if rater.is_imported else "rater",
            *_activity(votes[rater.alias]),
            store.acknowledged(rater.alias),
            f"suspended: {rater.suspension_reason}" if rater.is_suspended else "",
        )
        for rater in store.raters()
    ]
    columns = ("alias", "role", "votes", "skips", "median seconds", "guidelines read", "state")
    return Table(name="raters", title="Raters", columns=columns, rows=rows)


def _activity(votes: Sequence[Vote]) -> tuple[Cell, ...]:
    seconds = [vote.seconds for vote in votes if vote.seconds is not None]
    skips = sum(vote.choice is Choice.SKIP for vote in votes)
    return len(votes), skips, round(statistics.median(seconds), 1) if seconds else None
