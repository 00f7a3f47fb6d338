"""Sample sizes against textbook values."""

from __future__ import annotations

import math

import numpy as np
import pytest

from rlhf.evaluation.power import design_effect, prompts_for, prompts_needed, win_rate_deviation


@pytest.mark.parametrize(
    ("difference", "deviation", "power", "prompts"),
    [
        # By hand, z = 1.959964 + 0.841621: 7.8489 · (sd/δ)².
        (0.5, 1.0, 0.8, 32),  # 31.4; Cohen's table for paired d = 0.5 says 33 by Student's t
        (0.2, 1.0, 0.8, 197),  # 196.2
        (0.05, 0.5, 0.8, 785),  # 784.9
        (0.2, 1.0, 0.9, 263),  # z = 1.959964 + 1.281552: 10.507/0.04 = 262.7
    ],
)
def test_prompts_by_hand(difference: float, deviation: float, power: float, prompts: int) -> None:
    assert prompts_needed(difference, deviation, power=power) == prompts
    assert prompts_needed(-difference, deviation, power=power) == prompts


def test_four_times_the_prompts_for_half_the_difference() -> None:
    assert prompts_needed(0.01, 1.0) == pytest.approx(4 * prompts_needed(0.02, 1.0), abs=4)


def test_outcomes_with_ties() -> None:
    # 6 wins, 2 ties, 2 losses: v = 1 six times, ½ twice, 0 twice; mean 0.7, E[v²] = 0.65.
    values = [1.0] * 6 + [0.5] * 2 + [0.0] * 2
    assert win_rate_deviation(0.7, 0.2) == pytest.approx(np.std(values))
    assert win_rate_deviation(0.5, 0.0) == 0.5


def test_the_test_has_the_power_that_is_asked_for() -> None:
    n = prompts_needed(0.3, 1.0)
    draws = np.random.default_rng(0).normal(0.3, 1.0, size=(4000, n))
    z = draws.mean(1) / (draws.std(1, ddof=1) / math.sqrt(n))
    assert (np.abs(z) > 1.96).mean() == pytest.approx(0.8, abs=0.03)


def test_repeated_values_need_more_prompts() -> None:
    values = np.repeat(np.random.default_rng(0).normal(size=30), 5)
    assert design_effect(values, np.repeat(np.arange(30), 5)) == pytest.approx(5.0, rel=0.15)
    assert design_effect(values, np.arange(150)) == 1.0


def test_differences_that_tell_nothing_have_a_reason() -> None:
    assert prompts_for([0.0] * 5, range(5), 0.02).reason == "no difference varies"
    for rounded in ([0.3 - 0.2, 0.2 - 0.1, 0.4 - 0.3], [0.1 + 0.2 - 0.3, 0.0], [1000.1 - 1000, 50.1 - 50]):
        assert len({*rounded}) > 1
        assert prompts_for(rounded, range(len(rounded)), 0.02).reason == "no difference varies"
    for scale in (1e155, 1e300):
        found = prompts_for([scale, -scale, scale / 2, 0.0], range(4), 0.02)
        assert (found.count, found.reason) == (None, "the differences vary too much")
    assert prompts_for([1.0, -1.0, 0.5, 0.0], range(4), 0.02).count is not None
