"""Logistic regressions with ridges, many at once, by Newton's method.

Shapes: n rows, k effects, B fits.
"""

from __future__ import annotations

import numpy as np
from scipy.special import expit

from rlhf.types import Float64

_STEPS, _HALVINGS = 200, 30
_TOLERANCE = 1e-9
"""Slope of the mean loss at which a fit has converged."""


def fit_logistic(won: Float64, total: Float64, design: Float64, ridge: Float64) -> Float64:
    """(B, k) effects that minimise −Σ_n [won log σ(z) + (total − won) log σ(−z)] + Σ_k ridge · effect²/2.

    z is design @ effects. The loss is convex, and the ridges make its curvature positive. Steps that would raise the
    loss are halved, and no step is limited: on separated data effects are large.

    Args:
        won, total: (B, n) weight of the outcome 1 in each row, and of both outcomes.
        design: (n, k).
        ridge: (k,) inverse variances of the priors of the effects.
    """
    size = design.shape[1]
    products = (design[:, :, None] * design[:, None, :]).reshape(len(design), size * size)
    effects = np.zeros((len(won), size))
    enough = _TOLERANCE * np.maximum(total.sum(1), 1.0)
    for _ in range(_STEPS):
        expected = expit(effects @ design.T)
        slope = (total * expected - won) @ design + ridge * effects
        is_left = np.abs(slope).max(1) > enough
        if not is_left.any():
            break
        curve = (total * expected * (1 - expected) @ products).reshape(-1, size, size) + np.diag(ridge)
        step = np.linalg.solve(curve, slope[..., None])[..., 0] * is_left[:, None]
        before = _loss(effects, won, total, design, ridge)
        for _ in range(_HALVINGS):
            is_worse = _loss(effects - step, won, total, design, ridge) > before * (1 + 1e-12)
            if not is_worse.any():
                break
            step[is_worse] /= 2
        effects = effects - step
    return effects


def _loss(effects: Float64, won: Float64, total: Float64, design: Float64, ridge: Float64) -> Float64:
    """(B,) cross-entropy with the ridges."""
    logit = effects @ design.T
    loss = (total * np.logaddexp(0.0, logit) - won * logit).sum(1) + (ridge * effects**2).sum(1) / 2
    return np.asarray(loss)
