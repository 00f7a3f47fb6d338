"""Training rows of a project in TRL's formats, each with where it came from.

The names inside ``provenance`` avoid those that ``rlhf.data`` takes for an unread label, so that the files are read
without a setting.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rlhf.data.turns import VARIABLES
from rlhf.feedback.aggregate import Aggregated
from rlhf.feedback.labelled import LabelledOutcome, labelled_answers
from rlhf.feedback.project import is_tie, outcome_texts
from rlhf.feedback.records import Answer, Item, Vote
from rlhf.feedback.snapshot import ProjectSnapshot
from rlhf.records import Messages


def preference_rows(snapshot: ProjectSnapshot, aggregated: Aggregated, rule: str) -> Iterator[dict[str, Any]]:
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


def labelled_rows(snapshot: ProjectSnapshot) -> Iterator[dict[str, Any]]:
    """Unpaired labels (``labelled_answers``) as ``prompt``, ``completion``, ``label`` and ``provenance``."""
    for each in labelled_answers(snapshot):
        yield {
            "prompt": _prompt(each.prompt),
            "completion": _reply(each.prompt, each.answer.text),
            "label": each.is_good,
            "provenance": _of_label(snapshot, each),
        }


def _of_label(snapshot: ProjectSnapshot, each: LabelledOutcome) -> dict[str, Any]:
    if each.thumb is not None:
        return {"project": snapshot.digest, "thumb": each.thumb.id, **_of_answers([each.answer])}
    assert each.item is not None
    people = {**_of_people(each.votes), "judgements": len(each.votes), "aggregation": "most say both bad"}
    return {**_of_item(snapshot, each.item, [each.answer]), **people}


def _prompt(prompt: Messages | str) -> str | list[dict[str, object]]:
    return prompt if isinstance(prompt, str) else [turn.as_dict() for turn in prompt]


def _reply(prompt: Messages | str, text: str) -> str | list[dict[str, str]]:
    """An answer in the form of its prompt."""
    return text if isinstance(prompt, str) else [{"role": "assistant", "content": text}]


def _of_item(snapshot: ProjectSnapshot, item: Item, answers: Sequence[Answer]) -> dict[str, Any]:
    return {
        "project": snapshot.digest,
        "item": item.id,
        "round": item.round,
        "source": item.source,
        "group": item.group,
        **_of_answers(answers),
    }


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


def _votes_by_item(snapshot: ProjectSnapshot) -> Mapping[str, list[Vote]]:
    """Item → votes that can have decided: no repeats, none of suspended raters."""
    found: dict[str, list[Vote]] = {}
    for vote in snapshot.votes:
        if not (vote.is_repeat or vote.is_suspended):
            found.setdefault(vote.item, []).append(vote)
    return found
