from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.stats

from rlhf.evaluation.intervals import (
    effective_size,
    mean_interval,
    percentile_interval,
    share_interval,
    wilson_interval,
)


@pytest.mark.parametrize(
    ("successes", "n", "low", "high"),
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_gives_the_published_intervals(successes: int, n: int, low: float, high: float) -> None:
    """Newcombe 1998, Statistics in Medicine 17, 857-872, table I, method 3."""
    assert wilson_interval(successes, n) == pytest.approx((low, high), abs=5e-5)


@pytest.mark.parametrize(("successes", "n"), [(0, 1), (1, 1), (3, 7), (111, 200), (5550, 10000)])
def test_wilson_agrees_with_scipy(successes: int, n: int) -> None:
    expected = scipy.stats.binomtest(successes, n).proportion_ci(method="wilson")
    assert wilson_interval(successes, n) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_no_observations_give_no_information() -> None:
    assert wilson_interval(0, 0) == (0.0, 1.0)
    assert mean_interval([]) == (-math.inf, math.inf)
    assert mean_interval([3.0]) == (-math.inf, math.inf)


def test_mean_interval_agrees_with_scipy() -> None:
    values = np.random.default_rng(0).normal(2.0, 3.0, size=17)
    expected = scipy.stats.ttest_1samp(values, 0.0).confidence_interval(0.95)
    assert mean_interval(values) == pytest.approx((expected.low, expected.high), abs=1e-12)


SOME = [1, 1, 1, 0, 0, 0, 1, 1]
OF = ["a", "a", "a", "a", "b", "b", "c", "c"]


def test_the_effective_size_by_hand() -> None:
    """Mean 5/8; the clusters are ½, −5/4 and ¾ away from their share: together 19/8, one by one 8 · 15/64 = 15/8.

    Design effect (19/15) · (3/2) · (7/8) = 1.6625; t_7 = 2.364624 and t_2 = 4.302653.
    """
    expected = 8 / 1.6625 * (2.364624 / 4.302653) ** 2
    assert effective_size(SOME, OF) == pytest.approx(expected, rel=1e-6)
    shuffled = [7, 2, 4, 0, 5, 1, 6, 3]
    assert effective_size([SOME[i] for i in shuffled], [OF[i] for i in shuffled]) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(
    ("values", "clusters", "expected"),
    [
        ([1, 0, 1, 1], [3, 1, 2, 0], 4.0),  # each its own: exactly n
        ([1, 1, 1, 1, 1], [0, 0, 0, 1, 2], 25 / 11),  # all equal: 5²/(3² + 1 + 1)
        ([1, 0, 0], [5, 5, 5], 1.0),  # one cluster is one observation
        ([1], ["only"], 1.0),
        ([1, 0, 1, 0], [0, 0, 1, 1], 4 * (3.182446 / 12.706205) ** 2),  # alike by chance: no more than t loses
    ],
)
def test_the_effective_size_at_its_edges(values: list[int], clusters: list[int], expected: float) -> None:
    assert effective_size(values, clusters) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(("successes", "n"), [(0, 1), (1, 1), (3, 7), (111, 200)])
def test_a_share_of_independent_values_has_exactly_wilsons_interval(successes: int, n: int) -> None:
    assert share_interval(np.arange(n) < successes, np.arange(n)) == wilson_interval(successes, n)
    assert share_interval([], []) == (0.0, 1.0)


def test_a_clustered_mean_has_the_interval_of_cluster_robust_regression() -> None:
    """The standard error of a constant by least squares with clusters, as Stata gives it (CR1), by a loop."""
    random = np.random.default_rng(1)
    clusters = np.repeat(np.arange(12), random.integers(1, 9, size=12))
    values = random.normal(size=12)[clusters] + random.normal(size=len(clusters))
    residuals = values - values.mean()
    meat = sum(residuals[clusters == c].sum() ** 2 for c in range(12))
    error = np.sqrt(12 / 11 * meat) / len(values)
    half = scipy.stats.t.ppf(0.975, 11) * error
    assert mean_interval(values, clusters) == pytest.approx((values.mean() - half, values.mean() + half), rel=1e-9)
    assert mean_interval(values, np.arange(len(values))) == mean_interval(values)
    assert mean_interval(values, np.zeros(len(values))) == (-math.inf, math.inf)


def test_a_clustered_interval_holds_the_truth_where_wilsons_over_pairs_does_not() -> None:
    """30 prompts of 4 pairs, shares drawn from Beta(.75, .25): a correlation of one half within a prompt, mean .75."""
    random = np.random.default_rng(0)
    prompts, truth = np.repeat(np.arange(30), 4), 0.75
    draws = [random.random(120) < random.beta(0.75, 0.25, size=30)[prompts] for _ in range(1500)]
    clustered = np.array([share_interval(draw, prompts) for draw in draws])
    naive = np.array([wilson_interval(int(draw.sum()), 120) for draw in draws])
    covered = [np.mean((found[:, 0] <= truth) & (truth <= found[:, 1])) for found in (clustered, naive)]
    assert 0.93 < covered[0] < 0.975
    assert covered[1] < 0.85


@pytest.mark.parametrize(("unbounded", "is_known"), [(0, True), (24, True), (26, False), (1000, False)])
def test_an_end_is_unknown_where_its_percentile_is_not_bounded(unbounded: int, is_known: bool) -> None:
    drawn = np.arange(1000.0)
    nothing, many = np.zeros(1000, dtype=bool), drawn < unbounded  # of any value: a prior may have moved them
    low, high = percentile_interval(drawn, nothing, many)
    assert (high is not None, low is not None) == (is_known, unbounded < 975)
    low, high = percentile_interval(drawn, many, nothing)
    assert (low is not None, high is not None) == (is_known, unbounded < 975)
    low, high = percentile_interval(drawn, many, many)
    assert (low is not None, high is not None) == (is_known, is_known)


def test_resamples_of_one_value_have_no_interval() -> None:
    nothing = np.zeros(9, dtype=bool)
    assert percentile_interval(np.full(9, 0.5), nothing, nothing) == (None, None)
    assert percentile_interval(np.linspace(0, 1, 9), nothing, nothing) == pytest.approx((0.025, 0.975))
