"""95% confidence intervals of measured proportions and means.

Values of one prompt are correlated: ten comparisons of one prompt carry less information than ten of ten prompts. With
``clusters``, the prompt of each value, intervals use the effective sample size, which scipy does not have.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import stdtrit  # quantiles of Student's t: scipy.stats takes a second to import

from rlhf.types import Bool, Float64

Z95 = 1.959963984540054
"""The standard normal distribution has 95% of its mass within ±this value."""


def effective_size(values: ArrayLike, clusters: ArrayLike) -> float:
    """Effective sample size: the number of independent values that determine a mean as well as ``values`` (n,).

    It is n if every cluster has one value. Otherwise it is n · s²/(n V) · (t_{n−1}/t_{G−1})² (Korn and Graubard 1998,
    Survey Methodology 24, 193-201), with G clusters, s² the variance of the values, V the cluster-robust variance of
    their mean, G/(G−1) Σ_g (Σ_{i∈g} (v_i − mean))²/n², and t the 97.5% quantiles of Student's distribution, since V is
    estimated from only G clusters. n V/s² counts as at least 1, because a smaller value is due to chance. If all values
    are equal, clusters count as fully correlated: n²/Σ_g n_g² (Kish 1965).

    Args:
        clusters: (n,) cluster of each value, integers or strings.
    """
    array = np.asarray(values, dtype=np.float64)
    _, cluster, sizes = np.unique(np.asarray(clusters), return_inverse=True, return_counts=True)
    n, count = len(array), len(sizes)
    if count == n:
        return float(n)
    deviations = array - array.mean()
    if count == 1 or not deviations.any():
        return float(n**2 / np.square(sizes).sum())
    between = np.square(np.bincount(cluster, weights=deviations)).sum()
    design_effect = between / np.square(deviations).sum() * (count / (count - 1)) * ((n - 1) / n)
    return float(n / max(1.0, design_effect) * (stdtrit(n - 1, 0.975) / stdtrit(count - 1, 0.975)) ** 2)


def wilson_interval(successes: float, n: float, z: float = Z95) -> tuple[float, float]:
    """Score interval of a proportion (Wilson 1927, J. Am. Stat. Assoc. 22, 209-212); (0, 1) without observations.

    Both counts may be effective ones, which need not be integers, as scipy's ``binomtest`` requires.
    """
    if n == 0:
        return 0.0, 1.0
    fraction = successes / n
    centre = fraction + z * z / (2 * n)
    half_width = z * math.sqrt(fraction * (1 - fraction) / n + z * z / (4 * n * n))
    scale = 1 + z * z / n
    return max(0.0, (centre - half_width) / scale), min(1.0, (centre + half_width) / scale)


def share_interval(successes: ArrayLike, clusters: ArrayLike) -> tuple[float, float]:
    """95% interval of the fraction of true values in ``successes`` (n,): Wilson's, with the effective sample size."""
    array = np.asarray(successes, dtype=np.bool_)
    size = effective_size(array, clusters) if len(array) else 0.0
    return wilson_interval(int(array.sum()) * (size / max(len(array), 1)), size)


def mean_interval(values: ArrayLike, clusters: ArrayLike | None = None) -> tuple[float, float]:
    """95% interval of the mean of ``values`` (n,) by Student's t; unbounded with fewer than two values or clusters.

    Without ``clusters`` the values are independent. With them the variance is cluster-robust, with G − 1 degrees of
    freedom, but never less than the variance of independent values. Equal values give an interval without width, where
    scipy's ``t.interval`` gives NaN.
    """
    array = np.asarray(values, dtype=np.float64)
    if len(array) < 2 or (clusters is not None and len(np.unique(np.asarray(clusters))) < 2):
        return -math.inf, math.inf
    size = float(len(array)) if clusters is None else effective_size(array, clusters)
    half_width = stdtrit(len(array) - 1, 0.975) * array.std(ddof=1) / math.sqrt(size)
    return float(array.mean() - half_width), float(array.mean() + half_width)


def percentile_interval(drawn: Float64, has_no_least: Bool, has_no_greatest: Bool) -> tuple[float | None, float | None]:
    """95% percentile interval of resampled values (B,), of which some are bounded by a prior alone.

    Those count as infinite, so that an end is None once they reach its percentile: the data say nothing of it. There is
    no interval either if all resamples give one value.

    Args:
        has_no_least: (B,) whether nothing in the resample bounds the value from below.
        has_no_greatest: (B,) the same from above. Of a value that is bounded on no side nothing is known: at either end
            it counts as the extreme.
    """
    least = np.where(has_no_least, -np.inf, np.where(has_no_greatest, np.inf, drawn))
    greatest = np.where(has_no_greatest, np.inf, np.where(has_no_least, -np.inf, drawn))
    with np.errstate(invalid="ignore"):  # between two infinite values
        ends = float(np.percentile(least, 2.5)), float(np.percentile(greatest, 97.5))
    if ends[1] - ends[0] < 1e-9:
        return None, None
    low, high = (end if math.isfinite(end) else None for end in ends)
    return low, high


def describe_interval(value: float, low: float | None, high: float | None, digits: int = 4) -> str:
    """A value with the ends of its interval, if it has one; an end that is not known is shown as ``?``.

    Args:
        digits: significant ones.
    """
    if low is None and high is None:
        return f"{value:.{digits}g}"
    low_end, high_end = ("?" if end is None else f"{end:.{digits}g}" for end in (low, high))
    return f"{value:.{digits}g} [{low_end}, {high_end}]"
