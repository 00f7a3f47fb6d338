"""Length-controlled win rates: judges that reward length alone, and arms that are really better."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import linprog, minimize
from scipy.special import expit

from rlhf.evaluation.length_control import LENGTH_SPREAD, LengthControl, fit, length_controlled

N = 600


def controlled(values: np.ndarray, difference: np.ndarray) -> LengthControl:
    lengths = 500 + difference.astype(np.int64)
    found = length_controlled(values, lengths, np.full(len(values), 500), range(len(values)), seed=0)
    assert found is not None
    return found


@pytest.mark.parametrize(
    "difference",
    [
        pytest.param(lambda draw: draw.normal(150, 200, N), id="usually longer"),
        pytest.param(lambda draw: draw.uniform(20, 600, N), id="always longer"),
        pytest.param(lambda draw: np.full(N, 300.0), id="always longer by the same"),
    ],
)
def test_a_padded_clone_wins_half(difference) -> None:
    draw = np.random.default_rng(1)
    by = difference(draw)
    # The judge prefers the longer answer with a probability that gives the clone 70% of its wins.
    share_longer = (by > 0).mean()
    rate = (0.7 - (1 - share_longer)) / (2 * share_longer - 1)
    values = np.empty(N)
    for is_in, share in ((by > 0, rate), (by <= 0, 1 - rate)):
        values[is_in] = draw.permutation(np.arange(is_in.sum()) < share * is_in.sum())
    found = controlled(values, by)
    assert found.raw == pytest.approx(0.7, abs=0.01)
    assert found.win_rate == pytest.approx(0.5, abs=0.04)
    assert found.length_effect > 0.5
    assert found.is_confounded == (found.low is None) == bool((by > 0).mean() > 0.95)


@pytest.mark.parametrize("mean", [0.0, 100.0])
def test_a_better_arm_keeps_its_win_rate_if_length_changes_nothing(mean: float) -> None:
    draw = np.random.default_rng(2)
    found = controlled((draw.random(N) < 0.73).astype(float), draw.normal(mean, 150, N))
    assert found.win_rate == pytest.approx(0.73, abs=0.04)
    assert found.low is not None and found.high is not None
    assert found.low < 0.73 < found.high
    assert not found.is_confounded


def test_quality_and_length_are_told_apart() -> None:
    draw = np.random.default_rng(3)
    by = draw.normal(100, 200, 4000)
    values = (draw.random(4000) < expit(0.6 + 0.8 * np.tanh(by / by.std()))).astype(float)
    found = length_controlled(
        values, 1000 + by.astype(np.int64), np.full(4000, 1000), range(4000), seed=0, resamples=50
    )
    assert found is not None
    assert found.win_rate == pytest.approx(expit(0.6), abs=0.025)
    assert found.length_effect == pytest.approx(0.8, abs=0.12)
    assert found.raw > found.win_rate + 0.03


def test_the_fit_by_hand() -> None:
    # Two groups of equal size: at +t 80% are won, at −t 60%. Without priors θ and φ t are half the sum and half the
    # difference of the logits ln 4 and ln 1.5.
    shift = np.array([0.5, -0.5])
    theta, phi = fit(np.array([0.8, 0.6]), shift, np.full((1, 2), 1e6), 1.0)[0]
    assert theta == pytest.approx((np.log(4) + np.log(1.5)) / 2, abs=1e-4)
    assert 0.5 * phi == pytest.approx((np.log(4) - np.log(1.5)) / 2, abs=1e-4)


def test_separated_data_is_fitted_to_its_optimum() -> None:
    draw = np.random.default_rng(4)
    by = draw.normal(0, 200, 10 * N)
    shift = np.tanh(by / by.std())
    value = (shift > 0.01).astype(float)

    def loss(effects: np.ndarray) -> float:
        logit = effects[0] + effects[1] * shift
        ridges = effects[0] ** 2 + effects[1] ** 2 / LENGTH_SPREAD**2
        return float((np.logaddexp(0.0, logit) - value * logit).sum() + ridges / 2)

    best = minimize(loss, np.zeros(2), method="Nelder-Mead", options={"xatol": 1e-6, "fatol": 1e-10, "maxiter": 5000})
    found = fit(value, shift, np.ones((1, 10 * N)), 1.0)[0]
    assert found == pytest.approx(best.x, rel=1e-3)
    assert found[1] > 60


def test_a_judge_that_goes_by_length_alone_gives_no_interval() -> None:
    draw = np.random.default_rng(5)
    by = draw.normal(0, 150, N).round()
    by[by == 0] = 1.0
    values = (by > 0).astype(float)
    found = controlled(values, by)
    assert (found.is_separated, found.is_confounded, found.low, found.high) == (True, False, None, None)
    assert found.win_rate == pytest.approx(0.5, abs=0.1)
    assert controlled(1 - values, by).is_separated
    assert controlled(np.ones(N), by).is_separated
    values[:5] = 1 - values[:5]
    assert not controlled(values, by).is_separated


def test_pairs_of_equal_length_have_an_interval_though_the_longer_ones_are_all_won() -> None:
    found = controlled(np.repeat([1.0, 0.0, 1.0], [70, 30, 1]), np.repeat([0.0, 8.0], [100, 1]))
    assert (found.is_separated, found.is_confounded) == (False, False)
    assert found.win_rate == pytest.approx(0.7, abs=0.01)
    # By the normal distribution: 1.96 · √(0.7 · 0.3/100).
    assert (found.low, found.high) == pytest.approx((0.61, 0.79), abs=0.025)


def test_the_effect_is_unbounded_where_a_linear_program_says_so() -> None:
    draw = np.random.default_rng(6)
    kinds = set()
    for _ in range(40):
        by, values = draw.integers(-2, 3, 4).astype(float), draw.choice([0.0, 0.5, 1.0], 4)
        shift = np.tanh(by / (by.std() or np.abs(by).mean() or 1.0))
        rows = np.column_stack([np.ones(4), shift])
        # A direction in which no outcome becomes less likely: rises of wins and falls of losses.
        limits = np.concatenate([-rows[values > 0], rows[values < 1]])
        largest = [
            linprog([-sign, 0], limits, np.zeros(len(limits)), bounds=[(-1, 1), (None, None)]).x[0] * sign
            for sign in (1, -1)
        ]
        assert controlled(values, by).is_separated == (max(largest) > 0.5), (by, values)
        kinds.add(tuple(np.round(largest)))
    assert len(kinds) == 4


def test_an_arm_that_lost_once_has_no_upper_end() -> None:
    by = np.random.default_rng(7).normal(0, 100, 60)
    values = np.ones(60)
    values[np.argmin(np.abs(by))] = 0.0
    found = controlled(values, by)
    assert (found.high, found.is_separated) == (None, False)
    assert found.low is not None and found.low < found.win_rate < found.raw == 59 / 60
    other = controlled(1 - values, by)
    assert other.low is None and other.high is not None and other.high > other.raw


def test_failures_do_not_count_and_nothing_judged_is_nothing() -> None:
    values = np.array([1.0, 0.0, np.nan, 0.5])
    assert controlled(values, np.array([10, -10, 5, 0])).raw == 0.5
    assert length_controlled(np.array([np.nan]), np.array([1]), np.array([2]), [0], seed=0) is None
