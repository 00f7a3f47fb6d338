"""Means, paired differences and failures of metrics."""

from __future__ import annotations

import numpy as np
import pytest

from rlhf.evaluation.metric_table import MetricScores, summarise

nan = float("nan")


def test_means_differences_and_failures() -> None:
    values = np.array([[1.0, 2.0], [3.0, nan], [5.0, 8.0], [7.0, 8.0]])
    base, arm = summarise(MetricScores(name="m", values=values), ("base", "arm"), 0, np.arange(4), seed=0)
    assert (base.mean.value, base.failed, base.difference) == (4.0, 0, None)
    assert (arm.mean.value, arm.failed) == (6.0, 1)  # of three answers, not of four with a zero
    assert arm.difference is not None
    assert arm.difference.value == pytest.approx(5 / 3)  # (1 + 3 + 1)/3: the failed item is in neither arm's mean
    assert arm.difference.low is not None and 1.0 <= arm.difference.low < 5 / 3


def test_a_metric_that_always_failed_has_no_mean() -> None:
    values = np.array([[1.0, nan], [2.0, nan]])
    _, arm = summarise(MetricScores(name="m", values=values), ("base", "arm"), 0, np.arange(2), seed=0)
    assert (arm.mean.value, arm.mean.reason) == (None, "the metric failed on every answer")
    assert arm.failed == 2


def test_an_arms_interval_is_that_of_its_paired_differences() -> None:
    # Both arms vary much from item to item and differ by 1 ± 0.1: the difference is known far better than the means.
    draw = np.random.default_rng(0)
    common = draw.normal(0, 10, 200)
    values = np.column_stack([common, common + 1 + draw.normal(0, 0.1, 200)])
    _, arm = summarise(MetricScores(name="m", values=values), ("base", "arm"), 0, np.arange(200), seed=0)
    assert arm.difference is not None
    assert arm.difference.low == pytest.approx(1 - 1.96 * 0.1 / np.sqrt(200), abs=0.01)
    assert arm.mean.low is not None and arm.mean.high is not None
    assert arm.mean.high - arm.mean.low > 2


def test_items_of_a_group_are_resampled_together() -> None:
    values = np.repeat(np.random.default_rng(1).normal(size=(50, 1)), 4, axis=0)
    alone, grouped = (
        summarise(MetricScores(name="m", values=values), ("base",), 0, clusters, seed=0)[0].mean
        for clusters in (np.arange(200), np.repeat(np.arange(50), 4))
    )
    assert alone.low is not None and alone.high is not None and grouped.low is not None and grouped.high is not None
    assert (grouped.high - grouped.low) / (alone.high - alone.low) == pytest.approx(2.0, rel=0.15)
