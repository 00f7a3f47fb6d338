"""The statistics of a gate by hand, and their limits."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import integrate, stats

from rlhf.serving import fixed_tests, sequential_tests
from rlhf.serving.gate import adjust, combine
from rlhf.serving.gate_result import GateOutcome
from rlhf.serving.measurement import Proportion, UnitValues, measure_difference, measure_values, more_needed


@given(n=st.integers(1, 200), share=st.floats(0, 1), bar=st.floats(0.01, 0.99))
def test_a_proportion_is_tested_as_by_scipy(n: int, share: float, bar: float) -> None:
    k = round(share * n)
    expected = stats.binomtest(k, n, bar, alternative="greater").pvalue
    assert fixed_tests.proportion_p(k, n, bar) == pytest.approx(expected, abs=1e-9)


def test_thirty_faultless_answers_do_not_prove_a_rate_of_95_percent() -> None:
    assert fixed_tests.proportion_p(30, 30, 0.95) == pytest.approx(0.95**30)
    assert fixed_tests.proportion_p(59, 59, 0.95) < 0.05 < fixed_tests.proportion_p(58, 58, 0.95)


def test_a_mean_is_tested_by_students_t_and_the_worst_value_counts_once() -> None:
    values = np.array([0.2, 0.4, 0.5, 0.9])
    expected = stats.ttest_1samp(values, 0.3, alternative="greater").pvalue
    assert fixed_tests.mean_p(values, 0.3, None) == pytest.approx(expected)
    padded = stats.ttest_1samp([*values, 0.0], 0.3, alternative="greater").pvalue
    assert fixed_tests.mean_p(values, 0.3, (0.0, 1.0)) == pytest.approx(padded)
    assert fixed_tests.mean_p(np.full(500, 0.7), 0.1, None) == 1.0  # equal values of an unknown range
    assert fixed_tests.mean_p(np.zeros(100), -0.02, (-1.0, 1.0)) > 0.05  # 100 ties
    assert fixed_tests.mean_p(np.zeros(200), -0.02, (-1.0, 1.0)) < 0.05


def test_a_difference_of_proportions_is_tested_under_the_hypothesis() -> None:
    pooled = (0.5 + 0.4) / 2  # with equal arms and a bar of 0 the variance is the pooled one
    z = 0.1 / math.sqrt(pooled * (1 - pooled) * 2 / 100)
    assert fixed_tests.difference_p((50, 40), (100, 100), 0.0) == pytest.approx(stats.norm.sf(z), rel=1e-6)
    # Farrington and Manning's restricted estimates satisfy the score equation of the likelihood.
    other = fixed_tests._likeliest((90, 92), (100, 120), -0.1)
    own = other - 0.1
    score = 90 / own - 10 / (1 - own) + 92 / other - 28 / (1 - other)
    assert score == pytest.approx(0, abs=0.01)
    assert fixed_tests.difference_p((0, 0), (10, 10), 0.0) == 1.0


def test_evidence_of_a_proportion_by_hand() -> None:
    """Five successes of six against 0.6, by numerical integration over the probabilities above it; a tenth not bet."""
    prior = stats.beta(0.5 + 30 * 0.6, 0.5 + 30 * 0.4)
    average = integrate.quad(lambda q: q**5 * (1 - q) * prior.pdf(q), 0.6, 1)[0] / prior.sf(0.6)
    expected = math.log(0.9 * average / (0.6**5 * 0.4) + 0.1)
    assert float(sequential_tests.proportion_evidence(5, 6, 0.6)) == pytest.approx(expected)
    assert float(sequential_tests.proportion_evidence(0, 5000, 0.5)) == pytest.approx(math.log(0.1), abs=0.01)
    assert sequential_tests.proportion_p(3, 9, 1.0) == 1.0


@given(p=st.floats(0.05, 0.95), bar_above=st.floats(0, 0.04))
def test_evidence_against_a_true_hypothesis_is_a_bet_without_gain(p: float, bar_above: float) -> None:
    """The expected value of e over all outcomes of twelve trials is at most 1."""
    k = np.arange(13)
    evidence = np.exp(sequential_tests.proportion_evidence(k.astype(float), 12, p + bar_above))
    assert float((evidence * stats.binom.pmf(k, 12, p)).sum()) <= 1 + 1e-9


@given(st.lists(st.sampled_from([0.0, 0.25, 1.0]), max_size=3), st.floats(0.1, 0.9))
def test_every_bet_on_a_mean_is_fair(before: list[float], bar: float) -> None:
    """Whatever was seen, the wealth after one value of mean ``bar`` is on average what it was: bets do not see it."""
    wealth = [wealth_after([*before, x], bar) for x in (0.0, 1.0)]
    assert (1 - bar) * wealth[0] + bar * wealth[1] == pytest.approx(wealth_after(before, bar))


def wealth_after(values: list[float], bar: float) -> float:
    """By the definition, value by value."""
    wealth, mean, variance, squares, total = 1.0, 0.5, 0.25, 0.25, 0.5
    for count, x in enumerate(values, start=1):
        distance = mean - bar
        bet = min(max(distance / (variance + distance**2), 0.0), sequential_tests.LARGEST_BET / bar)
        wealth *= 1 + bet * (x - bar)
        total += x
        mean = total / (count + 1)
        squares += (x - mean) ** 2
        variance = squares / (count + 1)
    return wealth


@given(st.lists(st.floats(0, 1), min_size=1, max_size=30), st.floats(0.05, 0.95))
def test_the_wealth_is_that_of_its_definition(values: list[float], bar: float) -> None:
    path = [wealth_after(values[:n], bar) for n in range(len(values) + 1)]
    assert sequential_tests.mean_evidence(np.array(values), bar) == pytest.approx(math.log(max(path)), abs=1e-9)


def test_what_was_shown_stays_shown() -> None:
    good, bad = np.ones(100), np.zeros(200)
    before = sequential_tests.mean_p(good, 0.5, (0.0, 1.0))
    assert sequential_tests.mean_p(np.concatenate([good, bad]), 0.5, (0.0, 1.0)) == before < 1e-6
    with pytest.raises(ValueError, match="needs limits"):
        sequential_tests.mean_p(good, 0.5, None)


def test_the_candidates_arm_against_productions() -> None:
    assert sequential_tests.difference_p((950, 940), (1000, 1000), -0.05) < 0.001
    assert sequential_tests.difference_p((900, 940), (1000, 1000), -0.02) == 1.0
    swapped = measure_difference(Proportion(successes=5, n=50), Proportion(successes=45, n=50), True)
    assert swapped.p_below(0.0) < 1e-6
    assert swapped.p_above(0.0) == 1.0
    assert swapped.effect == pytest.approx(-0.8)


def test_corrections_by_hand() -> None:
    p = [0.01, 0.04, 0.03]
    assert adjust(p, "none") == p
    assert adjust(p, "bonferroni") == pytest.approx([0.03, 0.12, 0.09])
    assert adjust(p, "holm") == pytest.approx([0.03, 0.06, 0.06])
    assert adjust([0.5, 0.9], "holm") == [1.0, 1.0]


PASS, FAIL, OPEN = GateOutcome.PASS, GateOutcome.FAIL, GateOutcome.INCONCLUSIVE


@pytest.mark.parametrize(
    ("outcomes", "of_all", "of_any"),
    [
        ([PASS, PASS], PASS, PASS),
        ([PASS, OPEN], OPEN, PASS),
        ([PASS, FAIL], FAIL, PASS),
        ([OPEN, FAIL], FAIL, OPEN),
        ([FAIL, FAIL], FAIL, FAIL),
    ],
)
def test_outcomes_of_all_and_of_any(outcomes: list[GateOutcome], of_all: GateOutcome, of_any: GateOutcome) -> None:
    assert (combine(outcomes, "all"), combine(outcomes, "any")) == (of_all, of_any)


def test_bounds_are_where_the_test_turns() -> None:
    found = measure_values(UnitValues(values=np.array([1.0] * 95 + [0.0] * 5), range=(0.0, 1.0)), False)
    low = stats.binomtest(95, 100).proportion_ci(0.9, method="exact").low  # two-sided at 90%: one-sided at 95%
    assert found.lower_bound(0.05) == pytest.approx(low, abs=1e-6)
    high = stats.binomtest(95, 100).proportion_ci(0.9, method="exact").high
    assert found.upper_bound(0.05) == pytest.approx(high, abs=1e-6)
    unknown = measure_values(UnitValues(values=np.array([2.0, 2.0, 2.0]), range=None), False)
    assert unknown.lower_bound(0.05) < -100  # equal values of an unknown range bound nothing


@pytest.mark.parametrize("is_sequential", [False, True])
def test_the_number_of_further_samples_decides_mostly(is_sequential: bool) -> None:
    random, rate, bar = np.random.default_rng(0), 0.94, 0.9
    now = measure_values(UnitValues(values=np.array([1.0] * 94 + [0.0] * 6), range=(0.0, 1.0)), is_sequential)
    more = more_needed(now, bar, 0.05, 0.8, is_sequential)
    assert more is not None
    decided = 0
    for _ in range(400):
        values = (random.random(100 + more) < rate).astype(float)
        decided += measure_values(UnitValues(values=values, range=(0.0, 1.0)), is_sequential).p_above(bar) <= 0.05
    assert 0.7 <= decided / 400 <= 0.95


def test_no_number_of_samples_decides_at_the_bar() -> None:
    found = measure_values(UnitValues(values=np.array([1.0] * 90 + [0.0] * 10), range=(0.0, 1.0)), False)
    assert more_needed(found, 0.9, 0.05, 0.8, False) is None
