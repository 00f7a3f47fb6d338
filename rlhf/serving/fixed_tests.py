"""One-sided tests of a gate that looks once. Each tests "the effect is at most the bar" and returns its p-value."""

from __future__ import annotations

import math

import numpy as np
from scipy.special import betainc, ndtr, stdtr, xlogy

from rlhf.types import Float64

LEAST_VALUES = 2
Limits = tuple[float, float]
"""Lowest and highest possible value."""


def proportion_p(successes: float, n: int, bar: float) -> float:
    """Exact binomial test (Clopper and Pearson 1934, Biometrika 26, 404-413): P(X ≥ successes) at the bar."""
    if successes <= 0 or bar >= 1:
        return 1.0
    return float(betainc(successes, n - successes + 1, bar)) if bar > 0 else 0.0


def mean_p(values: Float64, bar: float, limits: Limits | None) -> float:
    """Student's t-test of a mean, over independent values (n,).

    Without variance, or with few failures, a t-test believes too much: thirty answers without a fault do not prove
    that there are none. So the worst possible value counts as one observation more if it is known, as one loss is
    added to a paired proportion by Bonett and Price (2012). If it is unknown, equal values prove nothing.

    Args:
        limits: the lowest and the highest value that are possible; None if there are none.
    """
    counted = values if limits is None else np.append(values, limits[0])
    n = len(counted)
    if n < LEAST_VALUES:
        return 1.0
    mean, deviation = float(counted.mean()), float(counted.std(ddof=1))
    if deviation <= 1e-12 * max(1.0, abs(mean)):
        return 1.0
    return float(stdtr(n - 1, -(mean - bar) / (deviation / math.sqrt(n))))


def difference_p(successes: tuple[int, int], n: tuple[int, int], bar: float) -> float:
    """Score test of a difference of two independent proportions, candidate minus production.

    The variance is that under the hypothesis (Farrington and Manning 1990, Stat. Med. 9, 1447-1454), so that arms
    without a failure do not seem certain.
    """
    if min(n) == 0 or bar >= 1:
        return 1.0
    if bar <= -1:
        return 0.0
    candidate, production = successes[0] / n[0], successes[1] / n[1]
    other = _likeliest(successes, n, bar)
    own = other + bar
    variance = own * (1 - own) / n[0] + other * (1 - other) / n[1]
    distance = candidate - production - bar
    if variance <= 0:
        return 1.0 if distance <= 0 else 0.0
    return float(ndtr(-distance / math.sqrt(variance)))


def _likeliest(successes: tuple[int, int], n: tuple[int, int], bar: float) -> float:
    """Production's proportion of the greatest likelihood where the candidate's is larger by ``bar``."""
    low, high = max(0.0, -bar), min(1.0, 1.0 - bar)
    for _ in range(5):  # the likelihood is concave: each grid narrows the maximum to a hundredth
        grid = np.linspace(low, high, 201)
        own = np.clip(grid + bar, 0, 1)
        likelihood = xlogy(successes[0], own) + xlogy(n[0] - successes[0], 1 - own)
        likelihood += xlogy(successes[1], grid) + xlogy(n[1] - successes[1], 1 - grid)
        best = int(likelihood.argmax())
        low, high = float(grid[max(0, best - 1)]), float(grid[min(200, best + 1)])
    return float(grid[best])
