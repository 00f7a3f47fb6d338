"""Bootstrap intervals of statistics over items, resampled by prompt.

Shapes: U items, G clusters, B resamples, F numbers per item.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rlhf.types import Float64, Int64

Statistic = Callable[[Float64], Float64]
"""From summed parts to values, over any leading axes; NaN where undefined."""
_CHUNK = 2**22
"""Largest number of resampled clusters drawn at once, to bound memory."""


@dataclass(frozen=True)
class Measure:
    """A statistic and the contribution of each item to its sums, (U, ...)."""

    parts: Float64
    statistic: Statistic


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A statistic with its 95% interval. What is undefined is None, and ``reason`` says why."""

    value: float | None
    low: float | None
    high: float | None
    items: int
    """Number of items that the value is computed from."""
    reason: str = ""


def estimate(
    measures: Sequence[Measure], clusters: Int64, *, undefined: str, seed: int, resamples: int
) -> tuple[Estimate, ...]:
    """Compute statistics of summed parts and their percentile intervals over the same resampled clusters.

    Whole clusters (prompts) are drawn with replacement, since the items of one prompt are correlated (Davison and
    Hinkley 1997, section 3.8). Resamples in which a statistic is undefined are left out. There is no interval if there
    are fewer than two clusters, or if all resamples give one value, as with perfect agreement: the bootstrap cannot say
    how uncertain that is.

    Args:
        clusters: (U,) cluster of each item.
        undefined: the reason where a value is NaN.
    """
    if not len(clusters):
        nothing = Estimate(value=None, low=None, high=None, items=0, reason="no item has two votes to compare")
        return (nothing,) * len(measures)
    sums = _sum_by_cluster(np.hstack([m.parts.reshape(len(clusters), -1) for m in measures]), clusters)
    drawn = _resampled(sums, seed, resamples)
    found, at = [], 0
    for measure in measures:
        shape = measure.parts.shape[1:]
        end = at + math.prod(shape)
        value = float(measure.statistic(sums[:, at:end].sum(0).reshape(shape)))
        values = measure.statistic(drawn[:, at:end].reshape(resamples, *shape))
        found.append(_estimate(value, values, len(clusters), undefined))
        at = end
    return tuple(found)


def _sum_by_cluster(parts: Float64, clusters: Int64) -> Float64:
    """(G, F) summed parts of each cluster."""
    _, cluster = np.unique(clusters, return_inverse=True)
    sums = np.zeros((cluster.max() + 1, parts.shape[1]))
    np.add.at(sums, cluster, parts)
    return sums


def _resampled(sums: Float64, seed: int, resamples: int) -> Float64:
    """(B, F) sums over the clusters of each resample."""
    random, size = np.random.default_rng(seed), len(sums)
    step = max(1, _CHUNK // size)
    starts = range(0, resamples, step)
    return np.concatenate([_weights(random, min(step, resamples - at), size) @ sums for at in starts])


def _weights(random: np.random.Generator, resamples: int, size: int) -> NDArray[np.float64]:
    """(resamples, size) how often each cluster is drawn."""
    picks = random.integers(size, size=(resamples, size)) + size * np.arange(resamples)[:, None]
    return np.bincount(picks.ravel(), minlength=resamples * size).reshape(resamples, size).astype(np.float64)


def _estimate(value: float, values: Float64, items: int, undefined: str) -> Estimate:
    if math.isnan(value):
        return Estimate(value=None, low=None, high=None, items=items, reason=undefined)
    defined = values[~np.isnan(values)]
    if not len(defined) or np.ptp(defined) < 1e-12:  # equal but for rounding
        reason = "no interval: every resample gives the same value"
        return Estimate(value=value, low=None, high=None, items=items, reason=reason)
    low, high = np.percentile(defined, [2.5, 97.5])
    return Estimate(value=value, low=float(low), high=float(high), items=items)
