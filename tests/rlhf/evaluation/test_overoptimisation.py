"""Constructed series of held-out evaluations: prompts differ by ``SPREAD``, which the pairing cancels."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.stats

from rlhf.evaluation.overoptimisation import (
    Decision,
    HeldOutEvaluation,
    Watch,
    difference_interval,
    is_lower,
    mean_by_prompt,
)

SPREAD = np.linspace(-5.0, 5.0, 40)
"""Differences between prompts, some of which are far easier than others."""


def watching(patience: int = 1) -> Watch:
    return Watch(judgements=10, patience=patience)


def wobble(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(0.0, 0.1, size=40)


def scores(mean: float, seed: int) -> list[float]:
    """Forty scores around ``mean``: the prompts' levels plus noise."""
    noise = wobble(seed)
    return list(mean + SPREAD + noise - noise.mean())


def follow(watch: Watch, series: list[tuple[float, float]]) -> tuple[Watch, list[Decision]]:
    """Evaluate policies of (reward, held-out mean), the first before the first step."""
    decisions = []
    for step, (reward, mean) in enumerate(series):
        watch, decision = watch.evaluate(10 * step, [reward] if step else [], scores(mean, step))
        decisions.append(decision)
    return watch, decisions


def test_rise_and_fall_stops_at_the_first_fall_and_keeps_the_top() -> None:
    watch, decisions = follow(watching(), [(0, 0.0), (1, 0.5), (2, 1.0), (3, 0.7)])
    assert [each.is_best for each in decisions] == [True, True, True, False]
    assert [each.stop for each in decisions] == [False, False, False, True]
    assert decisions[-1].is_over_optimised
    assert watch.best is not None and watch.best.step == 20
    assert watch.keeps_best
    expected = "the held-out score fell from 1 (after step 20) to 0.7 while the reward rose from 2 to 3"
    assert decisions[-1].why == expected


def test_a_fall_with_a_falling_reward_is_not_over_optimisation() -> None:
    watch, decisions = follow(watching(), [(0, 0.0), (2, 1.0), (1.5, 0.5), (1.0, 0.2)])
    assert [each.is_lower for each in decisions] == [False, False, True, True]
    assert not any(each.is_over_optimised or each.stop for each in decisions)
    assert "the reward did not rise: it went from 2 to 1" in decisions[-1].why
    assert "not over-optimisation" in decisions[-1].why
    assert watch.keeps_best, "the last policy is worse all the same"


def test_noise_does_not_stop_a_run() -> None:
    """Differences within the noise of forty pairs, which is 0.14 for one and 0.022 for the mean."""
    watch, decisions = follow(watching(), [(0, 0.0), (1, 0.01), (2, 0.0), (3, 0.005), (4, -0.01)])
    assert not any(each.is_lower or each.stop for each in decisions)
    assert watch.best is not None and watch.best.step == 10
    assert not watch.keeps_best
    assert decisions[-1].why == "not significantly lower than the best, after step 10, over 40 prompts"


def test_the_best_of_many_by_chance_does_not_stop_a_run_either() -> None:
    """Ten evaluations of equal policies: one run in twenty may stop; at 5% per comparison two in three would."""
    draw, runs, stopped = np.random.default_rng(0), 400, 0
    for _ in range(runs):
        watch, stops = watching(), []
        for step in range(10):
            watch, decision = watch.evaluate(step, [float(step)] if step else [], list(draw.normal(size=50)))
            stops.append(decision.stop)
        stopped += any(stops)
    assert stopped <= scipy.stats.binom.ppf(0.999, runs, 0.05)


@pytest.mark.parametrize(
    ("means", "stops"),
    [
        ([0.0, 1.0, 0.5, 0.5], [False, False, False, True]),
        ([0.0, 1.0, 0.5, 0.99, 0.5, 0.5], [False, False, False, False, False, True]),
        ([0.0, 1.0, 0.5, 1.5, 1.0, 1.0], [False, False, False, False, False, True]),
    ],
    ids=["twice in a row", "begins anew after an evaluation as high", "and after a new best"],
)
def test_patience_counts_evaluations_in_a_row(means: list[float], stops: list[bool]) -> None:
    _, decisions = follow(watching(patience=2), [(float(step), mean) for step, mean in enumerate(means)])
    assert [each.stop for each in decisions] == stops


def test_a_tie_leaves_the_earlier_one_the_best() -> None:
    watch, _ = watching().evaluate(0, [], [1.0, 2.0, 3.0])
    watch, decision = watch.evaluate(5, [9.0], [3.0, 2.0, 1.0])
    assert not decision.is_best and not decision.is_lower
    assert watch.best is not None and watch.best.step == 0


def test_the_start_has_the_reward_of_the_first_step() -> None:
    """Its policy sampled the first step's responses. The reward falls; its mean over three steps, 2, is below 3."""
    watch, _ = watching().evaluate(0, [], scores(1.0, 0))
    watch, decision = watch.evaluate(3, [3.0, 2.0, 1.0], scores(0.0, 1))
    assert decision.is_lower and not decision.is_over_optimised
    assert watch.best is not None and watch.best.reward == 3.0
    _, decision = watch.evaluate(6, [4.0], scores(0.0, 2))
    assert decision.stop


def test_with_one_step_between_evaluations_the_first_cannot_stop_the_run() -> None:
    """The only reward known is that of the start itself."""
    watch, _ = watching().evaluate(0, [], scores(1.0, 0))
    _, decision = watch.evaluate(1, [3.0], scores(0.0, 1))
    assert decision.is_lower and not decision.stop


def test_lower_is_what_the_paired_one_sided_test_calls_lower() -> None:
    """Near the threshold, compared with SciPy's test, at the level of 45 pairs of ten evaluations."""
    best = HeldOutEvaluation(step=0, reward=0.0, scores=tuple(SPREAD))
    noise, verdicts = wobble(7) - wobble(7).mean(), []
    for shift in np.linspace(-0.12, 0.0, 121):
        other = HeldOutEvaluation(step=1, reward=1.0, scores=tuple(SPREAD + noise + shift))
        expected = scipy.stats.ttest_rel(other.scores, best.scores, alternative="less").pvalue < 0.05 / 45
        assert is_lower(other, best, watching().level) == expected
        verdicts.append(expected)
    assert set(verdicts) == {True, False}
    interval = scipy.stats.ttest_rel(other.scores, best.scores).confidence_interval(0.95)
    assert difference_interval(other, best) == pytest.approx((interval.low, interval.high))


def test_prompts_without_a_score_are_left_out_of_the_pairs() -> None:
    nan = math.nan
    watch, _ = watching().evaluate(0, [], [1.0, 1.0, 1.0, 1.0, nan, 100.0])
    watch, decision = watch.evaluate(1, [0.0, 1.0], [0.9, 0.89, 0.91, 0.9, 0.0, nan])
    assert decision.stop
    assert watch.last is not None and watch.last.mean == pytest.approx(3.6 / 5)
    assert watch.best is not None and watch.best.mean == pytest.approx(104 / 5)


def test_keeping_the_best_asks_for_less_than_stopping_does() -> None:
    """A mean of -0.05 with a standard error of 0.022: beyond 5% of one comparison, not of 45."""
    watch, decisions = follow(watching(), [(0, 0.0), (1, 1.0), (2, 0.95)])
    assert watch.keeps_best and not decisions[-1].is_lower
    watch, _ = follow(watching(), [(0, 0.0), (1, 1.0), (2, 0.99)])
    assert not watch.keeps_best


def test_one_prompt_shows_nothing() -> None:
    watch, _ = watching().evaluate(0, [], [1.0])
    watch, decision = watch.evaluate(1, [0.0, 1.0], [-100.0])
    assert not decision.is_lower and not watch.keeps_best


def test_answers_to_one_prompt_are_averaged_and_what_is_missing_is_left_out() -> None:
    nan = math.nan
    found = mean_by_prompt([1.0, 2.0, nan, 5.0, nan, 4.0], [(7,), (3,), (7,), (7,), (9,), (3,)])
    np.testing.assert_array_equal(found, [3.0, 3.0, nan])
    np.testing.assert_array_equal(mean_by_prompt([2.0, nan], ["a", "b"]), [2.0, nan])


def test_scores_of_other_prompts_are_refused() -> None:
    watch, _ = watching().evaluate(0, [], [1.0, 2.0])
    with pytest.raises(ValueError, match="shorter"):
        watch.evaluate(1, [1.0], [1.0, 2.0, 3.0])
