"""One-sided tests that hold over any number of looks: each tests "the effect is at most the bar".

All are e-processes: under the hypothesis their expected value never exceeds 1, at no moment and for no rule of
stopping, so that 1/e is a p-value whenever one looks (Ville's inequality; Ramdas, Grünwald, Vovk and Shafer 2023,
Statistical Science 38, 576-601). Nothing is assumed of the distribution but its range.
"""

from __future__ import annotations

import math

import numpy as np
from scipy.special import betaincc, betaln, xlog1py, xlogy

from rlhf.serving.fixed_tests import Limits
from rlhf.types import Float64

LARGEST_BET = 0.5
"""Largest fraction of the wealth that one value may lose."""
PRIOR_SIZE = 30.0
"""Trials that the weights of probabilities are worth: found by simulation to need few samples at common rates."""
NOT_BET = 0.1
"""Fraction of the wealth that no bet on a proportion risks."""
GRID = 25
"""Probabilities of production, in each of three ranges, at which the evidence is computed."""


def proportion_p(successes: float, n: int, bar: float) -> float:
    """Of a proportion of independent trials."""
    return _p_value(float(proportion_evidence(successes, n, bar)))


def mean_p(values: Float64, bar: float, limits: Limits | None) -> float:
    """Of a mean of independent values (n,), in the order in which they came in.

    Raises:
        ValueError: there are no limits: no test of an unbounded mean holds for every distribution.
    """
    if limits is None:
        raise ValueError("a sequential test of a mean needs limits")
    low, width = limits[0], limits[1] - limits[0]
    return _p_value(mean_evidence((values - low) / width, (bar - low) / width))


def difference_p(successes: tuple[int, int], n: tuple[int, int], bar: float) -> float:
    """Of a difference of two independent proportions, candidate minus production."""
    return _p_value(difference_evidence(successes, n, bar))


def _p_value(log_evidence: float) -> float:
    return math.exp(min(0.0, -log_evidence))


def mean_evidence(values: Float64, bar: float) -> float:
    """Largest log-wealth of a bettor against "the mean is at most the bar", over values (n,) in [0, 1] in their order.

    The wealth is Π (1 + λ_i (x_i − bar)) with bets λ_i that the values before determine (Waudby-Smith and Ramdas 2023,
    J. R. Stat. Soc. B 86, 1-27, section 4; the bets are those of its appendix B.3, which approximate the growth-optimal
    ones). The largest wealth so far counts, so that what was shown once stays shown.
    """
    if bar >= 1 or not len(values):
        return 0.0
    if bar < 0:
        return math.inf
    count = np.arange(1, len(values) + 1)
    means = (0.5 + np.cumsum(values)) / (count + 1)
    variances = (0.25 + np.cumsum((values - means) ** 2)) / (count + 1)
    mean, variance = np.append(0.5, means[:-1]), np.append(0.25, variances[:-1])  # of the values before each
    distance = mean - bar
    bets = np.clip(distance / (variance + distance**2), 0, LARGEST_BET / max(bar, 1e-9))
    return max(0.0, float(np.cumsum(np.log1p(bets * (values - bar))).max()))


def proportion_evidence(successes: Float64 | float, n: float, bar: Float64 | float) -> Float64:
    """Log-evidence against "the probability is at most the bar", from counts alone: their order does not matter.

    The likelihood, averaged over larger probabilities, divided by that at the bar (Robbins 1970, Ann. Math. Stat. 41,
    1397-1409). The weights are a beta distribution about the bar, cut off below it: probabilities near the bar, of
    which most evidence is needed, weigh more. A tenth is not bet, which bounds the loss where the data speak for the
    hypothesis.

    Shapes: scalars, or arrays that broadcast.
    """
    inside = np.clip(np.asarray(bar, dtype=np.float64), 0, 1)
    a, b = 0.5 + PRIOR_SIZE * inside, 0.5 + PRIOR_SIZE * (1 - inside)
    after = a + successes, b + n - successes
    with np.errstate(divide="ignore", invalid="ignore"):
        above = np.log(betaincc(*after, inside)) - np.log(betaincc(a, b, inside))
        at_bar = xlogy(successes, inside) + xlog1py(n - successes, -inside)
        found = betaln(*after) - betaln(a, b) + above - at_bar
        found = np.logaddexp(math.log(1 - NOT_BET) + found, math.log(NOT_BET))
    found = np.where(inside >= 1, 0.0, found)  # the hypothesis cannot be wrong
    return np.where(np.asarray(bar) < 0, math.inf, found)  # nor right


def difference_evidence(successes: tuple[int, int], n: tuple[int, int], bar: float) -> float:
    """Log-evidence against "the candidate's probability is larger than production's by at most the bar".

    For each probability q of production the hypothesis says that production has q and the candidate at most q + bar.
    The evidence against both multiplies, since the arms are independent, and the smallest over all q counts. It holds
    for any order and any ratio of the two arms' requests.
    """
    candidate, production = successes[0] / max(n[0], 1), successes[1] / max(n[1], 1)
    # Evidence is smallest between both arms' estimates: a fine grid there, a coarse one everywhere, then a finer one.
    grid = np.sort(np.append(np.linspace(0, 1, GRID), np.clip(np.linspace(production, candidate - bar, GRID), 0, 1)))
    best = int(_evidence_at(grid, successes, n, bar).argmin())
    near = np.linspace(grid[max(0, best - 1)], grid[min(len(grid) - 1, best + 1)], GRID)
    return float(_evidence_at(near, successes, n, bar).min())


def _evidence_at(q: Float64, successes: tuple[int, int], n: tuple[int, int], bar: float) -> Float64:
    against_candidate = proportion_evidence(successes[0], n[0], q + bar)
    against_production = proportion_evidence(n[1] - successes[1], n[1], 1 - q)
    return np.where(
        q + bar < 0, math.inf, against_candidate + np.maximum(against_production, -1e300)
    )  # nobody has q < 0
