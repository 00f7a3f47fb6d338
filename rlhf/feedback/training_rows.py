"""Training rows of a project in TRL's formats, each with where it came from.

The names inside ``provenance`` avoid those that ``rlhf.data`` takes for an unread label, so that the files are read
without a setting.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rlhf.data.turns import VARIABLES
from rlhf.feedback.aggregate import Aggregated
from rlhf.feedback.judgements import independent
from rlhf.feedback.project import Snapshot, is_tie, outcome_texts
from rlhf.feedback.records import Answer, Choice, Item, Thumb, Vote
from rlhf.records import Messages


def preference_rows(snapshot: Snapshot, aggregated: Aggregated, rule: str) -> Iterator[dict[str, Any]]:
    """Preferences as ``prompt``, ``chosen``, ``rejected``, ``margin`` and ``provenance``.

    Args:
        rule: name of the aggregation.
    """
    votes = _votes_by_item(snapshot)
    for outcome in aggregated.outcomes:
        item = outcome.item
        chosen, rejected = outcome_texts(outcome)
        better, worse = item.answers if outcome.first_wins else item.answers[::-1]
        yield {
            "prompt": _prompt(item.prompt),
            "chosen": _reply(item.prompt, chosen),
            "rejected": _reply(item.prompt, rejected),
            "margin": outcome.margin,
            **{name: item.extra[name] for name in VARIABLES & item.extra.keys()},
            "provenance": {
                **_of_item(snapshot, item, [better, worse]),
                **_of_people([vote for vote in votes.get(item.id, ()) if vote.rater in outcome.raters]),
                "judgements": outcome.votes,
                "aggregation": rule,
                "probability": outcome.probability,
                "is_tie": is_tie(outcome),
            },
        }


def labelled_rows(snapshot: Snapshot) -> Iterator[dict[str, Any]]:
    """Unpaired labels as ``prompt``, ``completion``, ``label`` and ``provenance``.

    The labels are the users' thumbs; and both answers of an item are bad that an adjudicator, or most of its raters,
    found so. A preferred answer is not written as good: it is better than the other one, which may be bad too.
    """
    for thumb in snapshot.thumbs:
        yield _labelled(thumb.prompt, thumb.answer, thumb.is_good, _of_thumb(snapshot, thumb))
    for item, votes in _both_bad(snapshot):
        for answer in item.answers:
            people = {**_of_people(votes), "judgements": len(votes), "aggregation": "most say both bad"}
            yield _labelled(item.prompt, answer, False, {**_of_item(snapshot, item, [answer]), **people})


def _labelled(prompt: Messages | str, answer: Answer, is_good: bool, provenance: object) -> dict[str, Any]:
    return {
        "prompt": _prompt(prompt),
        "completion": _reply(prompt, answer.text),
        "label": is_good,
        "provenance": provenance,
    }


def _both_bad(snapshot: Snapshot) -> Iterator[tuple[Item, list[Vote]]]:
    """Items of which both answers are bad, with the votes that say so: the adjudicator's, or more than all others."""
    judged = independent(snapshot.items, snapshot.votes)
    by_item: dict[str, list[Vote]] = {}
    for vote in judged.votes:
        by_item.setdefault(vote.item, []).append(vote)
    decided = {vote.item: vote for vote in snapshot.votes if vote.is_adjudication and not vote.is_suspended}
    for item in snapshot.labels:
        votes = [decided[item.id]] if item.id in decided else by_item.get(item.id, [])
        bad = [vote for vote in votes if vote.choice is Choice.BOTH_BAD]
        if 2 * len(bad) > len(votes):
            yield item, bad


def _prompt(prompt: Messages | str) -> str | list[dict[str, object]]:
    return prompt if isinstance(prompt, str) else [turn.as_dict() for turn in prompt]


def _reply(prompt: Messages | str, text: str) -> str | list[dict[str, str]]:
    """An answer in the form of its prompt."""
    return text if isinstance(prompt, str) else [{"role": "assistant", "content": text}]


def _of_item(snapshot: Snapshot, item: Item, answers: Sequence[Answer]) -> dict[str, Any]:
    return {
        "project": snapshot.digest,
        "item": item.id,
        "round": item.round,
        "source": item.source,
        "group": item.group,
        **_of_answers(answers),
    }


def _of_thumb(snapshot: Snapshot, thumb: Thumb) -> dict[str, Any]:
    return {"project": snapshot.digest, "thumb": thumb.id, **_of_answers([thumb.answer])}


def _of_answers(answers: Sequence[Answer]) -> dict[str, Any]:
    """Origins of the answers: of a pair, the better one's first."""
    return {
        "policies": [answer.policy for answer in answers],
        "seeds": [answer.seed for answer in answers],
        "sampling": [dict(answer.sampling) for answer in answers],
    }


def _of_people(votes: Sequence[Vote]) -> dict[str, Any]:
    guidelines = {vote.guideline for vote in votes if vote.guideline is not None}
    return {"judged_by": sorted({vote.rater for vote in votes}), "guidelines": sorted(guidelines)}


def _votes_by_item(snapshot: Snapshot) -> Mapping[str, list[Vote]]:
    """Item → votes that can have decided: no repeats, none of suspended raters."""
    found: dict[str, list[Vote]] = {}
    for vote in snapshot.votes:
        if not (vote.is_repeat or vote.is_suspended):
            found.setdefault(vote.item, []).append(vote)
    return found
