"""95% intervals: how far a measured share or mean can be trusted."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import stdtrit

Z95 = 1.959963984540054
"""The standard normal distribution holds 95% of its mass within ±this."""


def wilson_interval(successes: int, n: int, z: float = Z95) -> tuple[float, float]:
    """Score interval of a share (Wilson 1927, J. Am. Stat. Assoc. 22, 209-212); (0, 1) where nothing was observed."""
    if n == 0:
        return 0.0, 1.0
    share = successes / n
    centre = share + z * z / (2 * n)
    half_width = z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    scale = 1 + z * z / n
    return max(0.0, (centre - half_width) / scale), min(1.0, (centre + half_width) / scale)


def mean_interval(values: ArrayLike) -> tuple[float, float]:
    """95% interval of the mean of independent ``values`` (n,) by Student's t; unbounded for fewer than two."""
    array = np.asarray(values, dtype=np.float64)
    if len(array) < 2:
        return -math.inf, math.inf
    half_width = stdtrit(len(array) - 1, 0.975) * array.std(ddof=1) / math.sqrt(len(array))
    return float(array.mean() - half_width), float(array.mean() + half_width)
