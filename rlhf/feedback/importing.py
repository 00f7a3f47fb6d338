"""Adds the content of a file to a project: votes or thumbs in any format, or a whole project."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from sqlite3 import Connection
from typing import TypeVar

from rlhf.errors import UserError
from rlhf.feedback.formats.reading import Feedback
from rlhf.feedback.guideline_table import Guideline
from rlhf.feedback.native import Contents
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


def restore(store: Store, contents: Contents) -> Added:
    """Add a file's content to a project: what the project has already stays as it is.

    The steps are transactions of their own. After a kill, importing the file again does the rest.

    Raises:
        UserError: the project has another text in one of the file's versions of the guidelines, or another rater, item
            or vote under the same name.
    """
    _require_same_guidelines(store.guidelines(), contents.guidelines)
    raters = sum(
        store.add_rater(rater.alias, is_adjudicator=rater.is_adjudicator, is_imported=rater.is_imported)
        for rater in contents.raters
    )
    added = Added(
        raters=raters,
        items=store.add_items(contents.items),
        votes=store.import_votes(contents.votes),
        thumbs=store.import_thumbs(contents.thumbs),
    )
    with store.writing() as db:
        _restore_people(db, contents)
    for rater in contents.raters:  # last: a file that is refused suspends nobody
        if rater.is_suspended:
            store.suspend(rater.alias, rater.suspension_reason)
    return added


def _require_same_guidelines(known: Iterable[Guideline], given: Iterable[Guideline]) -> None:
    texts = {guideline.version: guideline.markdown for guideline in known}
    for guideline in given:
        if texts.get(guideline.version, guideline.markdown) != guideline.markdown:
            raise UserError(
                f"version {guideline.version} of the guidelines has another text in the project than in the file",
                "the votes say by which version they were made, and would get another meaning",
                "import the file into a new project",
            )


def _restore_people(db: Connection, contents: Contents) -> None:
    """Guidelines, acknowledgements, and the times of both and of the raters, which the store would set to now."""
    guidelines = [(each.version, each.markdown, each.created) for each in contents.guidelines]
    db.executemany("INSERT OR IGNORE INTO guidelines VALUES (?, ?, ?)", guidelines)
    created = [(each.created, each.alias) for each in contents.raters]
    db.executemany("UPDATE raters SET created = min(created, ?) WHERE alias = ?", created)
    db.executemany(
        "INSERT OR IGNORE INTO acknowledgements SELECT number, ?, ? FROM raters WHERE alias = ?",
        [(version, time, each.alias) for each in contents.raters for version, time in each.acknowledged],
    )
