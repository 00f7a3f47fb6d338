"""People's votes on the arms of a comparison, from a feedback project.

An item of the project belongs to the comparison if its prompt is one of the items, and its two answers are those of two
arms: an answer's ``policy`` is the name of its arm, or its text is that of one arm alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from rlhf.arms.answers import Arms
from rlhf.data.split import canonical_prompt
from rlhf.errors import UserError
from rlhf.evaluation.agreement_with_people import ArmPreference
from rlhf.evaluation.arm_strengths import PairOutcome
from rlhf.feedback.aggregate import Ties, majority
from rlhf.feedback.project import is_project, is_tie
from rlhf.feedback.records import Answer, Item
from rlhf.feedback.snapshot import read_snapshot

Match = tuple[int, int, int]
"""Item and both arms of a voted item."""


@dataclass(frozen=True, kw_only=True)
class PeoplesVotes:
    """Majorities of people on pairs of this comparison's answers."""

    preferences: tuple[ArmPreference, ...]
    outcomes: tuple[PairOutcome, ...]
    """The same, and ties."""
    votes: int
    unmatched: int
    """Voted items of the project that are not of this comparison."""
    ambiguous: int
    """Voted items of this comparison with a text that several arms gave, and no policy that names one of them."""


def read_votes(path: str, arms: Arms) -> PeoplesVotes:
    """Read the majority of each compared pair. Suspended raters, repeats and checks do not count.

    Raises:
        UserError: ``path`` is no feedback project, or has no vote on two answers of this comparison.
    """
    if not is_project(path):
        raise UserError(f"votes: '{path}' is no feedback project", fix="name the file of `rlhf feedback init`")
    snapshot = read_snapshot(path)
    aggregated = majority(snapshot.items, snapshot.votes, Ties.BOTH_ORDERS)
    index = {item.prompt: number for number, item in enumerate(arms.items)}
    found: dict[str, PairOutcome] = {}
    preferences: list[ArmPreference] = []
    missed, votes = {kind: set[str]() for kind in ("unmatched", "ambiguous")}, 0
    for outcome in aggregated.outcomes:
        matched = _match(outcome.item, arms, index)
        if isinstance(matched, str):
            missed[matched].add(outcome.item.id)
            continue
        item, first, second = matched
        tie = is_tie(outcome)
        if outcome.item.id not in found:
            votes += outcome.votes
        value = 0.5 if tie else float(outcome.first_wins)
        found[outcome.item.id] = PairOutcome(item=item, first=first, second=second, value=value)
        if not tie:
            winner, loser = (first, second) if outcome.first_wins else (second, first)
            preferences.append(ArmPreference(item=item, winner=winner, loser=loser))
    if not found:
        if missed["ambiguous"]:
            why = f"of {len(missed['ambiguous']):,} voted items two arms gave this text, and the vote names no policy"
            fix = "name the arm as the policy of each answer, or compare arms whose answers differ"
            raise UserError(f"votes: no vote of '{path}' is of one arm against another", why, fix)
        why = f"none of its {len(missed['unmatched']):,} voted items has a prompt of the items and answers of two arms"
        raise UserError(f"votes: '{path}' has no vote on this comparison", why, "let people compare these answers")
    return PeoplesVotes(
        preferences=tuple(preferences),
        outcomes=tuple(found.values()),
        votes=votes,
        unmatched=len(missed["unmatched"]),
        ambiguous=len(missed["ambiguous"]),
    )


def _match(item: Item, arms: Arms, index: Mapping[str, int]) -> Match | Literal["unmatched", "ambiguous"]:
    """Match a project's item: it is of another comparison, or several arms gave a text, or item and arms are known."""
    number = index.get(canonical_prompt(item.prompt))
    if number is None:
        return "unmatched"
    first, second = (_arms_of(answer, number, arms) for answer in item.answers)
    if not first or not second or (len(first) == 1 and first == second):
        return "unmatched"
    return (number, first[0], second[0]) if len(first) == len(second) == 1 else "ambiguous"


def _arms_of(answer: Answer, item: int, arms: Arms) -> list[int]:
    """The arms that gave an answer to an item; of several, the one that ``policy`` names."""
    given = [i for i, arm in enumerate(arms.arms) if answer.text.strip() in arm.answers[item][:1]]
    named = [i for i in given if arms.names[i] == answer.policy]
    return named or given
