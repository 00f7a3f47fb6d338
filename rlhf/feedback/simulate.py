"""Simulated raters with known habits, for tests and experiments.

Every simulated item has a latent quality difference of its answers, so that the better one is known.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from scipy.special import expit

from rlhf.feedback.records import Answer, Choice, Item, Purpose, Vote
from rlhf.types import Float64

BUTTONS = tuple(choice for choice in Choice if choice is not Choice.SKIP)


class Habit(StrEnum):
    """How a simulated rater chooses."""

    ACCURATE = "accurate"
    """Names the better answer with probability ``accuracy``, on every item and independently."""
    BRADLEY_TERRY = "bradley_terry"
    """Prefers the first answer with probability σ(difference/``temperature``): errs more often on close answers."""
    COIN = "coin"
    """One of the two sides with equal probability."""
    BUTTONS = "buttons"
    """Each button but skip with equal probability."""
    LEFT = "left"
    """Always the left side."""


@dataclass(frozen=True, kw_only=True)
class SimulatedRater:
    """A rater of known habit."""

    name: str
    habit: Habit = Habit.ACCURATE
    accuracy: float = 0.8
    """Of the habit ``accurate``."""
    temperature: float = 1.0
    """Of the habit ``bradley_terry``."""
    tie_rate: float = 0.0
    """Fraction of votes that are ties, unless the habit is ``buttons`` or ``left``."""
    seconds: float = 20.0
    """Median time per vote; times are log-normal with σ = 0.5."""


@dataclass(frozen=True, kw_only=True)
class SimulatedItems:
    """Items and the truth about them."""

    items: tuple[Item, ...]
    differences: Float64
    """(items,) quality of the first answer minus quality of the second, in logits."""


def simulate_items(count: int, *, gold_fraction: float = 0.0, spread: float = 2.0, seed: int = 0) -> SimulatedItems:
    """Make ``count`` items of different prompts with differences from N(0, ``spread``²); a fraction of them is gold."""
    random = np.random.default_rng(seed)
    differences = random.normal(scale=spread, size=count)
    is_gold = random.permutation(count) < round(gold_fraction * count)
    items = tuple(_item(i, difference > 0, gold) for i, (difference, gold) in enumerate(zip(differences, is_gold)))
    return SimulatedItems(items=items, differences=differences)


def _item(number: int, first_wins: bool, is_gold: bool) -> Item:
    return Item(
        id=f"item-{number}",
        prompt=f"prompt {number}",
        answers=(Answer(text=f"first {number}"), Answer(text=f"second {number}")),
        purpose=Purpose.GOLD if is_gold else Purpose.LABEL,
        gold=_side(first_wins) if is_gold else None,
    )


def simulate_votes(
    simulated: SimulatedItems,
    raters: Sequence[SimulatedRater],
    *,
    overlap: int = 3,
    repeat_fraction: float = 0.0,
    seed: int = 0,
) -> tuple[Vote, ...]:
    """Votes of ``overlap`` raters on each label item, and of all raters on each gold item, in random order.

    The raters with the fewest votes are assigned first, and sides are drawn for every vote. A fraction of the votes on
    label items is followed at the end by the same rater's repeat.
    """
    random = np.random.default_rng([seed, 1])  # another stream than that of the items
    loads, votes, repeats = np.zeros(len(raters)), [], []
    for number in random.permutation(len(simulated.items)):
        item, difference = simulated.items[number], float(simulated.differences[number])
        is_label = item.purpose is Purpose.LABEL
        wanted = min(overlap, len(raters)) if is_label else len(raters)
        assigned = np.lexsort((random.random(len(raters)), loads))[:wanted]
        loads[assigned] += 1
        votes += [_vote(item, difference, raters[r], random) for r in assigned]
        if is_label:
            again = assigned[random.random(wanted) < repeat_fraction]
            repeats += [_vote(item, difference, raters[r], random, is_repeat=True) for r in again]
    return tuple(votes + repeats)


def _vote(
    item: Item, difference: float, rater: SimulatedRater, random: np.random.Generator, is_repeat: bool = False
) -> Vote:
    is_swapped = bool(random.random() < 0.5)
    return Vote(
        id=f"{rater.name}-{item.id}{'-repeat' * is_repeat}",
        item=item.id,
        rater=rater.name,
        choice=_choice(rater, difference, is_swapped, random),
        is_swapped=is_swapped,
        is_repeat=is_repeat,
        seconds=float(rater.seconds * np.exp(random.normal(scale=0.5))),
    )


def _choice(rater: SimulatedRater, difference: float, is_swapped: bool, random: np.random.Generator) -> Choice:
    if rater.habit is Habit.BUTTONS:
        return BUTTONS[random.integers(len(BUTTONS))]
    if rater.habit is Habit.LEFT:
        return _side(not is_swapped)
    if random.random() < rater.tie_rate:
        return Choice.TIE
    return _side(random.random() < _first_probability(rater, difference))


def _first_probability(rater: SimulatedRater, difference: float) -> float:
    if rater.habit is Habit.COIN:
        return 0.5
    if rater.habit is Habit.BRADLEY_TERRY:
        return float(expit(difference / rater.temperature))
    return rater.accuracy if difference > 0 else 1 - rater.accuracy


def _side(first_wins: bool) -> Choice:
    return Choice.FIRST_SLIGHTLY if first_wins else Choice.SECOND_SLIGHTLY
