"""Unpaired labels of a project: single answers that people found good or bad."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from rlhf.feedback.judgements import decisions, independent
from rlhf.feedback.records import Answer, Choice, Item, Thumb, Vote
from rlhf.feedback.snapshot import ProjectSnapshot
from rlhf.records import Messages


@dataclass(frozen=True, kw_only=True)
class LabelledOutcome:
    """One answer with its label, and who gave it: a thumb, or the votes on an item."""

    prompt: Messages | str
    answer: Answer
    is_good: bool
    thumb: Thumb | None = None
    item: Item | None = None
    votes: tuple[Vote, ...] = ()


def labelled_answers(snapshot: ProjectSnapshot) -> Iterator[LabelledOutcome]:
    """The users' thumbs; and both answers of an item as bad that an adjudicator, or most of its raters, found so.

    A preferred answer is not good: it is better than the other one, which may be bad too.
    """
    for thumb in snapshot.thumbs:
        yield LabelledOutcome(prompt=thumb.prompt, answer=thumb.answer, is_good=thumb.is_good, thumb=thumb)
    for item, votes in _both_bad(snapshot):
        for answer in item.answers:
            yield LabelledOutcome(prompt=item.prompt, answer=answer, is_good=False, item=item, votes=tuple(votes))


def _both_bad(snapshot: ProjectSnapshot) -> Iterator[tuple[Item, list[Vote]]]:
    """Items of which both answers are bad, with the votes that say so: the adjudicator's, or more than all others."""
    judged = independent(snapshot.items, snapshot.votes)
    by_item: dict[str, list[Vote]] = {}
    for vote in judged.votes:
        by_item.setdefault(vote.item, []).append(vote)
    decided = {vote.item: vote for vote in decisions(snapshot.votes)}
    for item in snapshot.labels:
        votes = [decided[item.id]] if item.id in decided else by_item.get(item.id, [])
        bad = [vote for vote in votes if vote.choice is Choice.BOTH_BAD]
        if 2 * len(bad) > len(votes):
            yield item, bad
