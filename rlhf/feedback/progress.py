"""Progress of a project, from the tallies alone: cheap enough for every page view."""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping
from dataclasses import dataclass

from rlhf.feedback.records import Purpose
from rlhf.feedback.settings import Disagreement, read_settings


@dataclass(frozen=True, kw_only=True)
class Counts:
    """Numbers of items, votes and raters."""

    items: Mapping[Purpose, int]
    complete: int
    """Label items with as many counted votes as the overlap."""
    started: int
    """Label items with at least one counted vote, and fewer than the overlap."""
    votes: int
    """All votes, with repeats, skips, suspended ones, and those on gold and calibration items."""
    disputed: int
    """Complete label items whose votes disagree and that await an adjudicator."""
    adjudicated: int
    thumbs: int
    by_rater: Mapping[str, int]
    """All votes of each rater, by alias."""


def count_all(db: sqlite3.Connection) -> Counts:
    """Compute the numbers, inside a read transaction."""
    settings = read_settings(db)
    levels = db.execute("SELECT purpose, counted, count(*) AS n FROM items GROUP BY purpose, counted").fetchall()
    by_rater = {row["alias"]: row["votes"] for row in db.execute("SELECT alias, votes FROM raters ORDER BY number")}
    label = {row["counted"]: row["n"] for row in levels if row["purpose"] == Purpose.LABEL}
    return Counts(
        items={purpose: sum(row["n"] for row in levels if row["purpose"] == purpose) for purpose in Purpose},
        complete=sum(n for counted, n in label.items() if counted >= settings.overlap),
        started=sum(n for counted, n in label.items() if 0 < counted < settings.overlap),
        votes=sum(by_rater.values()),
        disputed=_count_disputed(db, settings.overlap, lowest_dispute(settings.disagreement_to_adjudicate)),
        adjudicated=db.execute("SELECT count(*) FROM items WHERE adjudications > 0").fetchone()[0],
        thumbs=db.execute("SELECT count(*) FROM thumbs").fetchone()[0],
        by_rater=by_rater,
    )


def lowest_dispute(rule: Disagreement) -> int:
    """The lowest value of the column ``dispute`` (1: opposite sides, 2: no majority) that is adjudicated."""
    return {Disagreement.OPPOSITE: 1, Disagreement.NO_MAJORITY: 2, Disagreement.NEVER: 3}[rule]


def _count_disputed(db: sqlite3.Connection, overlap: int, lowest: int) -> int:
    query = (
        "SELECT count(*) FROM items INDEXED BY items_dispute"
        " WHERE purpose = 'label' AND dispute > 0 AND counted >= ? AND dispute >= ?"
    )
    return int(db.execute(query, (overlap, lowest)).fetchone()[0])
