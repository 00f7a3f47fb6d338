"""Number of prompts that an evaluation needs to find a difference."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import ndtri

from rlhf.evaluation.intervals import effective_size

POWER = 0.8
LEVEL = 0.05


def prompts_needed(
    difference: float, deviation: float, *, design_effect: float = 1.0, power: float = POWER, level: float = LEVEL
) -> int:
    """Prompts for a two-sided paired test: ((z_{1−level/2} + z_power) · deviation / difference)² · design effect.

    Source: Cohen 1988, Statistical power analysis, section 2.4, by the normal distribution. The test rejects a true
    difference of this size with probability ``power``.

    Args:
        difference: smallest difference that matters, in the metric's unit; not 0.
        deviation: standard deviation of the paired differences (of the outcomes 1, ½ and 0 for a win rate).
        design_effect: values divided by their effective number, for several values per prompt.
    """
    z = ndtri(1 - level / 2) + ndtri(power)
    return max(2, math.ceil(design_effect * (z * deviation / difference) ** 2 - 1e-9))


def win_rate_deviation(rate: float, ties: float) -> float:
    """Standard deviation of the outcomes 1, ½ and 0 with a win rate and a fraction of ties.

    E[v²] = wins + ties/4 and wins = rate − ties/2, so the variance is rate − ties/4 − rate².
    """
    return math.sqrt(max(0.0, rate - ties / 4 - rate**2))


def design_effect(values: ArrayLike, clusters: ArrayLike) -> float:
    """Number of values divided by their effective number; at least 1."""
    array = np.asarray(values, dtype=np.float64)
    return max(1.0, len(array) / effective_size(array, clusters)) if len(array) else 1.0
