"""Adds the content of a feedback file to a project."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

from rlhf.feedback.formats.reading import Feedback
from rlhf.feedback.store import Store

T = TypeVar("T")
AT_ONCE = 2000
"""Rows of one transaction: others can write between two of them, and one takes about a second."""


@dataclass(frozen=True, kw_only=True)
class Added:
    """What an import added; the rest of the file was in the project before."""

    items: int
    votes: int
    thumbs: int
    raters: int


def import_feedback(store: Store, feedback: Feedback, report: Callable[[int], object] = lambda done: None) -> Added:
    """Add a file's items, raters, votes and thumbs; those that are known stay as they are.

    The steps are transactions of their own. After a kill, importing the file again does the rest.

    Args:
        report: receives the number of rows done so far, of ``number_of_rows``.

    Raises:
        UserError: the project has another vote or thumb under the same id, as after a change of the file.
    """
    done = 0

    def parts(rows: Sequence[T]) -> Iterator[Sequence[T]]:
        nonlocal done
        for start in range(0, len(rows), AT_ONCE):
            part = rows[start : start + AT_ONCE]
            yield part
            done += len(part)
            report(done)

    raters = sum(store.add_rater(alias, is_imported=True) for alias in sorted({vote.rater for vote in feedback.votes}))
    return Added(
        raters=raters,
        items=sum(store.add_items(part) for part in parts(feedback.items)),
        votes=sum(store.import_votes(part) for part in parts(feedback.votes)),
        thumbs=sum(store.import_thumbs(part) for part in parts(feedback.thumbs)),
    )


def number_of_rows(feedback: Feedback) -> int:
    """Rows that an import handles."""
    return len(feedback.items) + len(feedback.votes) + len(feedback.thumbs)
