"""Length-controlled win rate: what an arm would win if its answers were as long as the base's.

Dubois et al. 2024, "Length-controlled AlpacaEval" (arXiv:2404.04475), section 3: a logistic regression of the judge's
preference on the arm and on tanh(Δ/σ_Δ), Δ the difference of lengths in characters; the win rate is predicted at Δ = 0.
Two things differ. The paper's third term, the difficulty of each instruction, is fitted on more than a hundred models
and is left out here, where the items are the user's own. And the paper learns the effect of length from clones of the
base that are known to be only longer or shorter; here an arm whose answers are nearly always longer (or shorter) is
flagged, because nothing in its data separates length from quality, and what length can explain counts as length.
Flagged too are outcomes that do not bound the arm's effect, as of an arm that always wins, or of a judge that decides
by length alone: then its prior alone keeps it finite (Albert and Anderson 1984, Biometrika 71, 1-10).

Shapes: n pairs, B resamples.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import expit

from rlhf.evaluation.intervals import percentile_interval
from rlhf.evaluation.ridge_logistic import fit_logistic
from rlhf.types import Bool, Float64, Int64

SPREAD, SPREAD_IF_CONFOUNDED = 1.0, 0.1
"""Standard deviation, in logits, of the prior of the arm's effect. The first changes a win rate of 73% over 200 pairs
by less than 0.3 points."""
LEAST_OVERLAP = 0.05
"""Least fraction of pairs in which the arm's answer is not longer, and in which it is not shorter."""
LENGTH_SPREAD = 100.0
"""Of the prior of the effect of length: only keeps it finite."""
RESAMPLES = 400


@dataclass(frozen=True, kw_only=True)
class LengthControl:
    """A length-controlled win rate with its 95% percentile interval by resampled prompts."""

    win_rate: float
    low: float | None
    high: float | None
    """None if ``is_confounded``, since resampling cannot say how wrong the assumption is, and if all resamples give one
    value. An end is also None if too many resamples do not bound the arm's effect on its side, as if it lost once."""
    raw: float
    """Win rate without the control."""
    length_effect: float
    """Coefficient of tanh(Δ/σ_Δ), in logits; positive if the judge prefers longer answers."""
    is_confounded: bool
    """The arm's answers are nearly always longer, or nearly always shorter: the number rests on an assumption."""
    is_separated: bool
    """The outcomes do not bound the arm's effect, on one side or on both: the number is the prior's."""


def length_controlled(
    values: Float64, lengths: Int64, base_lengths: Int64, clusters: Sequence[int], seed: int, resamples: int = RESAMPLES
) -> LengthControl | None:
    """Fit the regression; None without a judged pair.

    Args:
        values: (n,) outcomes of the arm against the base in [0, 1], both orders averaged; NaN where the judge failed.
        lengths, base_lengths: (n,) characters of both answers.
        clusters: (n,) cluster of each pair.
    """
    is_known = ~np.isnan(values)
    if not is_known.any():
        return None
    value, difference = values[is_known], (lengths - base_lengths)[is_known].astype(np.float64)
    scale = difference.std() or np.abs(difference).mean() or 1.0
    shift = np.tanh(difference / scale)
    overlap = min(float((difference <= 0).mean()), float((difference >= 0).mean()))
    is_confounded = overlap < LEAST_OVERLAP
    spread = SPREAD_IF_CONFOUNDED if is_confounded else SPREAD
    arm, length = fit(value, shift, np.ones((1, len(value))), spread)[0]
    is_separated = bool(np.any(_unbounded(value, shift, np.ones((1, len(value))))))
    low: float | None = None
    high: float | None = None
    if not is_confounded and not is_separated:  # what does not bound the effect, no part of it does
        weights = _resampled(np.asarray(clusters)[is_known], seed, resamples)
        drawn = expit(fit(value, shift, weights, spread)[:, 0])
        low, high = percentile_interval(drawn, *_unbounded(value, shift, weights))
    return LengthControl(
        win_rate=float(expit(arm)),
        low=low,
        high=high,
        raw=float(value.mean()),
        length_effect=float(length),
        is_confounded=is_confounded,
        is_separated=is_separated,
    )


def fit(value: Float64, shift: Float64, weights: Float64, spread: float) -> Float64:
    """(B, 2) effects θ of the arm and φ of length that minimise the weighted cross-entropy of σ(θ + φ · shift).

    Args:
        value, shift: (n,) outcomes in [0, 1] and tanh(Δ/σ_Δ).
        weights: (B, n) weight of each pair in each fit.
        spread: standard deviation of the prior of θ.
    """
    design = np.column_stack([np.ones_like(shift), shift])
    return fit_logistic(weights * value, weights, design, np.array([spread**-2, LENGTH_SPREAD**-2]))


def _unbounded(value: Float64, shift: Float64, weights: Float64) -> tuple[Bool, Bool]:
    """(B,) whether the pairs with a weight do not bound θ from below, and whether they do not bound it from above.

    Outcomes between 0 and 1 are wins and losses.
    """
    won, lost = (weights > 0) & (value > 0), (weights > 0) & (value < 1)
    return _is_parted(lost, won, shift), _is_parted(won, lost, shift)


def _is_parted(near: Bool, far: Bool, shift: Float64) -> Bool:
    """(B,) whether a limit of the shift other than 0 has ``near`` on the side of 0, and ``far`` on the other; or on it.

    Along a line that is 0 at the limit and positive at 0, θ can grow without making any outcome less likely: the near
    ones are wins, the far ones losses. A limit at 0 leaves θ to the pairs of equal length, and only φ is unbounded.
    """
    least, most = np.where(far, shift, np.inf).min(1), np.where(far, shift, -np.inf).max(1)
    is_above = (least > 0) & (np.where(near, shift, -np.inf).max(1) <= least)
    is_below = (most < 0) & (np.where(near, shift, np.inf).min(1) >= most)
    return np.asarray(is_above | is_below)


def _resampled(clusters: Int64, seed: int, resamples: int) -> Float64:
    """(B, n) how often each pair's cluster is drawn."""
    cluster = np.unique(clusters, return_inverse=True)[1]
    groups = int(cluster.max()) + 1
    counts = np.random.default_rng(seed).multinomial(groups, np.full(groups, 1 / groups), size=resamples)
    return counts[:, cluster].astype(np.float64)
