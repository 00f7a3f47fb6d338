"""Which of its item's tallies a vote feeds: the number of votes for each outcome, or of adjudications."""

from __future__ import annotations

import sqlite3

from rlhf.feedback.records import Choice


def feeds(choice: Choice, *, is_repeat: bool, is_adjudication: bool, is_suspended: bool) -> str:
    """Name of the tally; empty for a vote that counts in none: a repeat, a skip, or a suspended rater's.

    A skip feeds none, so that another rater judges the item instead.
    """
    strength = choice.strength
    if is_repeat or is_suspended or strength is None:
        return ""
    if is_adjudication:
        return "adjudication"
    return "neither" if strength == 0 else "first" if strength > 0 else "second"


def recount(db: sqlite3.Connection, rater: int) -> None:
    """Compute what all votes of a rater feed after a suspension began or ended; triggers move the tallies."""
    is_suspended = bool(db.execute("SELECT is_suspended FROM raters WHERE number = ?", (rater,)).fetchone()[0])
    votes = db.execute(
        "SELECT number, choice, is_repeat, is_adjudication FROM votes WHERE rater = ?", (rater,)
    ).fetchall()
    db.executemany(
        "UPDATE votes SET feeds = ? WHERE number = ?",
        [
            (
                feeds(
                    Choice(vote["choice"]),
                    is_repeat=vote["is_repeat"],
                    is_adjudication=vote["is_adjudication"],
                    is_suspended=is_suspended,
                ),
                vote["number"],
            )
            for vote in votes
        ],
    )
