"""Bradley-Terry over arms."""

from __future__ import annotations

import math

import numpy as np
import pytest

from rlhf.evaluation.arm_strengths import RIDGE, PairOutcome, fit_strengths, rank_arms
from rlhf.feedback.bradley_terry import fit_bradley_terry


def outcomes(first: int, second: int, wins: int, losses: int, ties: int = 0) -> list[PairOutcome]:
    values = [1.0] * wins + [0.0] * losses + [0.5] * ties
    return [PairOutcome(item=i, first=first, second=second, value=value) for i, value in enumerate(values)]


def test_two_arms_have_the_logit_of_the_win_rate() -> None:
    base, arm = rank_arms(outcomes(1, 0, 60, 30, 10), ("base", "arm"), 0, range(100), seed=0)
    assert base.strength == 0.0
    assert arm.strength == pytest.approx(math.log(65 / 35), abs=0.01)
    # The delta method: sd of the outcomes/√n/(p (1 − p)); E[v²] = 0.625.
    deviation = math.sqrt((0.625 - 0.65**2) / 100) / (0.65 * 0.35)
    assert arm.low is not None and arm.high is not None
    assert arm.high - arm.low == pytest.approx(2 * 1.96 * deviation, rel=0.15)


def test_strengths_add_up_along_a_chain() -> None:
    given = [*outcomes(1, 0, 75, 25), *outcomes(2, 1, 75, 25)]
    found = rank_arms(given, ("base", "middle", "best"), 0, range(100), seed=0, resamples=20)
    assert [each.strength for each in found] == pytest.approx([0.0, math.log(3), 2 * math.log(3)], abs=0.02)


def test_an_arm_that_was_not_compared_has_no_strength() -> None:
    found = rank_arms(outcomes(1, 0, 5, 5), ("base", "arm", "other"), 0, range(10), seed=0, resamples=5)
    assert (found[2].strength, found[2].low) == (None, None)
    assert found[1].strength is not None


def test_an_arm_that_always_wins_has_no_interval_beside_others() -> None:
    given = [*outcomes(1, 0, 49, 0), *outcomes(2, 0, 30, 19)]
    base, winner, other = rank_arms(given, ("base", "winner", "other"), 0, range(50), seed=0, resamples=100)
    assert winner.strength is not None and winner.strength > 3
    assert (winner.low, winner.high, base.low) == (None, None, None)
    assert other.low is not None and other.high is not None
    # A loss against the other arm bounds it: the other arm loses to the base.
    bounded = rank_arms([*given, *outcomes(1, 2, 5, 5)], ("base", "winner", "other"), 0, range(50), seed=0)
    assert bounded[1].low is not None and bounded[1].high is not None


def test_an_arm_that_lost_once_has_no_upper_end() -> None:
    # (29/30)^30 = 36% of the resamples have no loss; in the others the ridge is of no account. A resample has at most 3
    # losses with a probability of 98.1%, at most 2 with one of 92.1%: the lower end is ln(27/3).
    arm = rank_arms(outcomes(1, 0, 29, 1), ("base", "arm"), 0, range(30), seed=0)[1]
    assert arm.low == pytest.approx(math.log(9), abs=0.02)
    assert arm.strength == pytest.approx(math.log(29), abs=0.1)
    assert arm.high is None
    other = rank_arms(outcomes(1, 0, 1, 29), ("base", "arm"), 0, range(30), seed=0)[1]
    assert other.low is None and other.high == pytest.approx(-math.log(9), abs=0.02)
    # With 5 losses 0.4% of the resamples have none, fewer than lie above the upper end.
    often = rank_arms(outcomes(1, 0, 25, 5), ("base", "arm"), 0, range(30), seed=0)[1]
    assert often.low is not None and often.high is not None


def test_the_base_may_be_any_arm() -> None:
    found = rank_arms(outcomes(1, 0, 75, 25), ("arm", "base"), 1, range(100), seed=0, resamples=5)
    assert [each.strength for each in found] == pytest.approx([-math.log(3), 0.0], abs=0.02)


def test_outcomes_of_one_prompt_widen_the_interval() -> None:
    draw = np.random.default_rng(0)
    values = np.repeat(draw.integers(0, 2, 50), 4)
    given = [PairOutcome(item=i, first=1, second=0, value=float(v)) for i, v in enumerate(values)]
    alone, grouped = (
        rank_arms(given, ("base", "arm"), 0, clusters, seed=0)[1]
        for clusters in (range(200), np.repeat(np.arange(50), 4).tolist())
    )
    assert alone.high is not None and alone.low is not None and grouped.high is not None and grouped.low is not None
    assert (grouped.high - grouped.low) / (alone.high - alone.low) == pytest.approx(2.0, rel=0.2)


def test_many_tables_at_once_give_what_one_fit_gives() -> None:
    wins = np.random.default_rng(0).integers(0, 9, (3, 4, 4)).astype(float) * (1 - np.eye(4))
    wins[2, 0, 1:], wins[2, 1:, 0] = 20.0, 0.0  # one arm wins always
    first, second = (index.ravel() for index in np.indices((4, 4)))
    for table, found in zip(wins, fit_strengths(wins)):
        expected, _ = fit_bradley_terry(first, second, table.ravel(), table.ravel(), RIDGE)
        assert found.tolist() == pytest.approx(expected.tolist(), abs=1e-5)
