"""Number of prompts that an evaluation needs to find a difference."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import ndtri

from rlhf.evaluation.intervals import effective_size

POWER = 0.8
LEVEL = 0.05
LEAST_DIFFERENCE = 1e-12
"""Smaller ones are below the rounding of any metric."""
ROUNDING = 1e-9
"""Relative; differences that vary less are equal but for the rounding of the values that they are taken from."""


@dataclass(frozen=True, kw_only=True)
class PromptsNeeded:
    """A number of prompts, or the reason why it is not known."""

    count: int | None
    reason: str = ""


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


def prompts_for(differences: ArrayLike, clusters: ArrayLike, difference: float, power: float = POWER) -> PromptsNeeded:
    """Prompts that a ``difference`` needs, by the deviation of measured differences (n,), n ≥ 2, and their clusters."""
    array = np.asarray(differences, dtype=np.float64)
    with np.errstate(over="ignore", invalid="ignore"):
        if np.ptp(array) <= LEAST_DIFFERENCE + ROUNDING * np.abs(array).max():
            return PromptsNeeded(count=None, reason="no difference varies")
        deviation = float(array.std(ddof=1))
    try:
        # Of scaled differences, whose squares are finite; the design effect is of no unit.
        effect = design_effect(array / np.abs(array).max(), clusters)
        count = prompts_needed(difference, deviation, design_effect=effect, power=power)
    except (OverflowError, ValueError):  # math.ceil raises either for what is not finite
        return PromptsNeeded(count=None, reason="the differences vary too much")
    return PromptsNeeded(count=count)


def win_rate_deviation(rate: float, ties: float) -> float:
    """Standard deviation of the outcomes 1, ½ and 0 with a win rate and a fraction of ties.

    E[v²] = wins + ties/4 and wins = rate − ties/2, so the variance is rate − ties/4 − rate².
    """
    return math.sqrt(max(0.0, rate - ties / 4 - rate**2))


def design_effect(values: ArrayLike, clusters: ArrayLike) -> float:
    """Number of values divided by their effective number; at least 1."""
    array = np.asarray(values, dtype=np.float64)
    return max(1.0, len(array) / effective_size(array, clusters)) if len(array) else 1.0
