"""95% intervals: how far a measured share or mean can be trusted.

Numbers that belong to one prompt are alike: ten comparisons of one prompt say less than ten of ten. Where ``clusters``
names the prompt of each number, intervals count what the numbers are worth together, the effective sample size.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import stdtrit

Z95 = 1.959963984540054
"""The standard normal distribution holds 95% of its mass within ±this."""


def effective_size(values: ArrayLike, clusters: ArrayLike) -> float:
    """How many independent numbers say as much about a mean as ``values`` (n,), those of one cluster being alike.

    n where every cluster has one number. Otherwise n · s²/(n V) · (t_{n−1}/t_{G−1})² (Korn and Graubard 1998, Survey
    Methodology 24, 193-201), G the clusters, s² the values' variance, V the cluster-robust variance of their mean,
    G/(G−1) Σ_g (Σ_{i∈g} (v_i − mean))²/n², and t the 97.5% points of Student's distribution, since V is known no better
    than G allows. At most n times the ratio of the t: clusters that differ less than chance would have it are chance.
    Equal values say nothing of how alike a cluster is: it then counts as wholly alike, n²/Σ_g n_g² (Kish 1965).

    Args:
        clusters: (n,) what each number belongs to, integers or strings.
    """
    array = np.asarray(values, dtype=np.float64)
    _, cluster, sizes = np.unique(np.asarray(clusters), return_inverse=True, return_counts=True)
    n, count = len(array), len(sizes)
    if count == n:
        return float(n)
    apart = array - array.mean()
    if count == 1 or not apart.any():
        return float(n**2 / np.square(sizes).sum())
    together = np.square(np.bincount(cluster, weights=apart)).sum()
    design_effect = together / np.square(apart).sum() * (count / (count - 1)) * ((n - 1) / n)
    return float(n / max(1.0, design_effect) * (stdtrit(n - 1, 0.975) / stdtrit(count - 1, 0.975)) ** 2)


def wilson_interval(successes: float, n: float, z: float = Z95) -> tuple[float, float]:
    """Score interval of a share (Wilson 1927, J. Am. Stat. Assoc. 22, 209-212); (0, 1) where nothing was observed.

    Both counts may be effective ones, which are no integers.
    """
    if n == 0:
        return 0.0, 1.0
    share = successes / n
    centre = share + z * z / (2 * n)
    half_width = z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    scale = 1 + z * z / n
    return max(0.0, (centre - half_width) / scale), min(1.0, (centre + half_width) / scale)


def share_interval(successes: ArrayLike, clusters: ArrayLike) -> tuple[float, float]:
    """95% interval of the share of true values among ``successes`` (n,): Wilson's, of their effective number."""
    array = np.asarray(successes, dtype=np.bool_)
    size = effective_size(array, clusters) if len(array) else 0.0
    return wilson_interval(int(array.sum()) * (size / max(len(array), 1)), size)


def mean_interval(values: ArrayLike, clusters: ArrayLike | None = None) -> tuple[float, float]:
    """95% interval of the mean of ``values`` (n,) by Student's t; unbounded for fewer than two clusters.

    Without ``clusters`` the values are independent. With them the variance is the cluster-robust one, on G − 1 degrees
    of freedom, but never less than that of independent values.
    """
    array = np.asarray(values, dtype=np.float64)
    if len(array) < 2 or (clusters is not None and len(np.unique(np.asarray(clusters))) < 2):
        return -math.inf, math.inf
    size = float(len(array)) if clusters is None else effective_size(array, clusters)
    half_width = stdtrit(len(array) - 1, 0.975) * array.std(ddof=1) / math.sqrt(size)
    return float(array.mean() - half_width), float(array.mean() + half_width)
