"""Means of metrics by arm, and paired differences from the base, with bootstrap intervals clustered by prompt.

Shapes: I items, A arms; NaN where a metric failed on an answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from rlhf.evaluation.bootstrap import Estimate, Measure, estimate
from rlhf.types import Float64, Int64

RESAMPLES = 2000
FAILED = "the metric failed on every answer"


@dataclass(frozen=True, kw_only=True)
class MetricScores:
    """A metric's values, (I, A), NaN where it failed; a larger value means a better answer."""

    name: str
    values: Float64
    corpus: tuple[float, ...] = ()
    """Values of all answers of each arm together, where the metric has one that is no mean."""

    def failures(self, arm: int) -> int:
        """Number of an arm's answers without a value."""
        return int(np.isnan(self.values[:, arm]).sum())


@dataclass(frozen=True, kw_only=True)
class ArmResult:
    """One metric of one arm."""

    metric: str
    arm: str
    mean: Estimate
    """Over the answers on which the metric did not fail."""
    difference: Estimate | None
    """Mean of arm minus base over the items on which neither failed; None for the base."""
    failed: int
    """Answers on which the metric failed: they are in no mean."""
    corpus: float | None


def summarise(
    scores: MetricScores, arms: Sequence[str], base: int, clusters: Int64, seed: int, resamples: int = RESAMPLES
) -> tuple[ArmResult, ...]:
    """Compute one metric's results of all arms. All columns share their resampled prompts.

    Args:
        base: index of the base among the arms.
        clusters: (I,) cluster of each item: its prompt, or a group of prompts.
    """
    values = scores.values
    differences = values - values[:, [base]]
    measures = [mean_measure(column) for column in (*values.T, *differences.T)]
    found = estimate(measures, clusters, undefined=FAILED, seed=seed, resamples=resamples)
    return tuple(
        ArmResult(
            metric=scores.name,
            arm=arm,
            mean=found[i],
            difference=None if i == base else found[len(arms) + i],
            failed=scores.failures(i),
            corpus=scores.corpus[i] if scores.corpus else None,
        )
        for i, arm in enumerate(arms)
    )


def mean_measure(values: Float64) -> Measure:
    """The mean of values (I,) without NaN, as a statistic of summed parts."""
    is_known = ~np.isnan(values)
    return Measure(np.column_stack([np.where(is_known, values, 0.0), is_known]).astype(np.float64), _mean)


def _mean(sums: Float64) -> Float64:
    count = sums[..., 1]
    return np.divide(sums[..., 0], count, out=np.full(count.shape, np.nan), where=count > 0)
