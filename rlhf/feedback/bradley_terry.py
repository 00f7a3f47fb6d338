"""Bradley-Terry strengths of answers that are compared with each other.

Shapes: n comparisons, A answers.
"""

from __future__ import annotations

import numpy as np
from scipy.special import expit

from rlhf.types import Float64, Int64

GRADIENT_TOLERANCE = 1e-8


def fit_bradley_terry(
    first: Int64, second: Int64, wins: Float64, totals: Float64, ridge: float
) -> tuple[Float64, bool]:
    """Strengths (A,) in logits with P(first beats second) = σ(s_first − s_second), and whether the fit converged.

    Minimises −Σ wins log σ(d) + (totals − wins) log σ(−d) + ridge/2 · Σ s² (Bradley and Terry 1952, Biometrika 39,
    324-345). The ridge keeps strengths finite where one answer wins always, and sets the mean of connected answers to
    0. The loss is convex; unconnected answers do not influence each other.

    Args:
        first, second: (n,) indices of the answers of each comparison.
        wins: (n,) votes for the first answer; a tie counts one half.
        totals: (n,) votes.
        ridge: positive.
    """
    from scipy.optimize import minimize  # slow to import, and needed by few commands

    size = max(int(first.max(initial=-1)), int(second.max(initial=-1))) + 1

    def loss(strengths: Float64) -> tuple[float, Float64]:
        difference = strengths[first] - strengths[second]
        value = totals @ np.logaddexp(0.0, difference) - wins @ difference + ridge / 2 * (strengths @ strengths)
        slope = totals * expit(difference) - wins
        return value, _sum_at(first, slope, size) - _sum_at(second, slope, size) + ridge * strengths

    found = minimize(
        loss,
        np.zeros(size),
        jac=True,
        method="L-BFGS-B",
        options={"gtol": GRADIENT_TOLERANCE, "ftol": 0, "maxiter": 5000},
    )
    gradient = np.abs(loss(found.x)[1]).max(initial=0.0)
    return found.x, bool(gradient < 1e3 * GRADIENT_TOLERANCE)


def _sum_at(index: Int64, values: Float64, size: int) -> Float64:
    return np.bincount(index, weights=values, minlength=size).astype(np.float64)
