"""Flags: simulated raters with bad habits are found within 60 votes each, honest ones at 80% are not."""

from __future__ import annotations

import pytest

from rlhf.feedback.flags import Flag, Reason, flags
from rlhf.feedback.guessing import guessing
from rlhf.feedback.records import Choice, Vote
from rlhf.feedback.simulate import Habit, SimulatedItems, SimulatedRater, simulate_items, simulate_votes

SEEDS = range(20)
RANDOM = SimulatedRater(name="random", habit=Habit.BUTTONS)
COIN = SimulatedRater(name="coin", habit=Habit.COIN)
LEFT = SimulatedRater(name="left", habit=Habit.LEFT)
OVERLAP, GOLD = 3, 0.05


def honest(count: int, accuracy: float = 0.8) -> list[SimulatedRater]:
    return [SimulatedRater(name=f"honest{i}", accuracy=accuracy) for i in range(count)]


def project(raters: list[SimulatedRater], votes_each: int, seed: int) -> tuple[SimulatedItems, tuple[Vote, ...]]:
    """A project in which each rater has about the given number of votes, gold included."""
    items = round(votes_each * len(raters) / (OVERLAP * (1 - GOLD) + len(raters) * GOLD))
    simulated = simulate_items(items, gold_fraction=GOLD, seed=seed)
    return simulated, simulate_votes(simulated, raters, overlap=OVERLAP, seed=seed)


def flagged(raters: list[SimulatedRater], votes_each: int, seed: int) -> list[Flag]:
    simulated, votes = project(raters, votes_each, seed)
    return flags(simulated.items, votes)


@pytest.mark.parametrize(
    "raters", [[*honest(2), RANDOM], [*honest(2), RANDOM, LEFT], [*honest(3), RANDOM, LEFT]], ids=len
)
def test_bad_raters_are_flagged_within_60_votes_and_honest_ones_are_not(raters: list[SimulatedRater]) -> None:
    bad = {rater.name for rater in raters if rater.habit is not Habit.ACCURATE}
    exact = [{flag.rater for flag in flagged(raters, 60, seed)} == bad for seed in SEEDS]
    assert sum(exact) >= 19


@pytest.mark.parametrize("count", [3, 5])
def test_honest_raters_alone_are_not_flagged(count: int) -> None:
    assert sum(flagged(honest(count), 60, seed) == [] for seed in SEEDS) >= 19


def test_a_coin_is_flagged_in_time() -> None:
    """Harder than random buttons: a coin has no ties, and agrees with the others by half. 120 votes suffice."""
    found = [{flag.rater for flag in flagged([*honest(4), COIN], 120, seed)} for seed in SEEDS]
    assert sum("coin" in raters for raters in found) >= 18
    assert sum(raters <= {"coin"} for raters in found) >= 19


def test_the_reasons_are_named_with_numbers() -> None:
    fast = SimulatedRater(name="fast", seconds=1.0)
    found = flagged([*honest(2), fast, LEFT], 60, 3)
    assert {(flag.rater, flag.reason) for flag in found} >= {("fast", Reason.FAST), ("left", Reason.SIDE)}
    evidence = {flag.reason: flag.evidence for flag in found}
    assert "for the left side" in evidence[Reason.SIDE]
    assert "in less than 2 s" in evidence[Reason.FAST]


def test_skips_are_flagged() -> None:
    simulated, votes = project(honest(3), 60, 0)
    of_one = [vote for vote in votes if vote.rater == "honest0"]
    skipped = [Vote(id=f"{v.id}s", item=v.item, rater="idle", choice=Choice.SKIP) for v in of_one]
    assert [(f.rater, f.reason) for f in flags(simulated.items, [*votes, *skipped])] == [("idle", Reason.SKIPS)]


def test_suspended_raters_are_not_flagged_again() -> None:
    simulated, votes = project([*honest(2), LEFT], 60, 0)
    suspended = [Vote(**{**vars(v), "is_suspended": v.rater == "left"}) for v in votes]
    assert flags(simulated.items, suspended) == []


def test_sides_that_were_not_drawn_flag_nobody() -> None:
    """The first answer is the better one throughout, and always on the left, as in an imported file."""
    simulated, votes = project(honest(3), 60, 0)
    imported = [Vote(**{**vars(v), "choice": Choice.FIRST_MUCH, "is_swapped": False}) for v in votes]
    assert [flag.reason for flag in flags(simulated.items, imported) if flag.reason is Reason.SIDE] == []


def test_a_rater_who_is_always_wrong_guesses_worse_than_a_guess() -> None:
    simulated, votes = project([*honest(4), SimulatedRater(name="inverted", accuracy=0.2)], 60, 0)
    assert guessing(simulated.items, votes)["inverted"].probability > 0.99


def test_one_vote_says_nothing() -> None:
    simulated, votes = project(honest(3), 60, 0)
    assert guessing(simulated.items, votes[:1])[votes[0].rater].probability < 0.5
    assert flags(simulated.items, []) == []
