"""Bootstrap intervals of statistics over items, resampled by prompt.

Shapes: U items, G clusters, B resamples, F numbers per item.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rlhf.feedback.coefficients import Float64
from rlhf.types import Int64

Statistic = Callable[[Float64], Float64]
"""From summed parts, (..., F), to values, (...); NaN where undefined."""
_CHUNK = 2**22
"""Largest number of resampled clusters drawn at once, to bound memory."""


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
    parts: Float64, clusters: Int64, statistic: Statistic, undefined: str, seed: int, resamples: int
) -> Estimate:
    """Compute a statistic of summed parts and its percentile interval over resampled clusters.

    Whole clusters (prompts) are drawn with replacement, since the items of one prompt are correlated (Davison and
    Hinkley 1997, section 3.8). Resamples in which the statistic is undefined are left out. There is no interval if
    there are fewer than two clusters, or if all resamples give one value, as with perfect agreement: the bootstrap
    cannot say how uncertain that is.

    Args:
        parts: (U, ...) contribution of each item; all of them count.
        clusters: (U,) cluster of each item.
        undefined: the reason where the value is NaN.
    """
    if not len(parts):
        return Estimate(value=None, low=None, high=None, items=0, reason="no item has two votes to compare")
    _, cluster = np.unique(clusters, return_inverse=True)
    sums = np.zeros((cluster.max() + 1, *parts.shape[1:]))
    np.add.at(sums, cluster, parts)
    value = float(statistic(sums.sum(0)))
    if np.isnan(value):
        return Estimate(value=None, low=None, high=None, items=len(parts), reason=undefined)
    low, high, reason = _interval(_resampled(sums, statistic, seed, resamples))
    return Estimate(value=value, low=low, high=high, items=len(parts), reason=reason)


def _resampled(sums: Float64, statistic: Statistic, seed: int, resamples: int) -> Float64:
    """(B,) values of the statistic over resampled clusters."""
    random, size = np.random.default_rng(seed), len(sums)
    flat = sums.reshape(size, -1)
    step = max(1, _CHUNK // size)
    drawn = [_weights(random, min(step, resamples - at), size) @ flat for at in range(0, resamples, step)]
    return statistic(np.concatenate(drawn).reshape(resamples, *sums.shape[1:]))


def _weights(random: np.random.Generator, resamples: int, size: int) -> NDArray[np.float64]:
    """(resamples, size) how often each cluster is drawn."""
    picks = random.integers(size, size=(resamples, size)) + size * np.arange(resamples)[:, None]
    return np.bincount(picks.ravel(), minlength=resamples * size).reshape(resamples, size).astype(np.float64)


def _interval(values: Float64) -> tuple[float | None, float | None, str]:
    defined = values[~np.isnan(values)]
    if not len(defined) or np.ptp(defined) < 1e-12:  # equal but for rounding
        return None, None, "no interval: every resample gives the same value"
    low, high = np.percentile(defined, [2.5, 97.5])
    return float(low), float(high), ""
