"""Bradley-Terry strengths of arms from pairwise outcomes, with intervals by resampled prompts.

Shapes: n outcomes, A arms, B resamples.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from rlhf.evaluation.intervals import percentile_interval
from rlhf.evaluation.ridge_logistic import fit_logistic
from rlhf.types import Bool, Float64, Int64

RIDGE = 0.01
"""Keeps the strength of an arm that always wins finite, and changes others by less than their rounding in print."""
RESAMPLES = 1000


@dataclass(frozen=True, kw_only=True)
class PairOutcome:
    """Outcome of two arms' answers to one item."""

    item: int
    first: int
    second: int
    value: float
    """1 if the first arm wins, 0 if the second does; ½ for a tie."""


@dataclass(frozen=True, kw_only=True)
class ArmStrength:
    """An arm's strength in logits relative to the base: P(arm beats base) = σ(strength)."""

    arm: str
    strength: float | None
    """None if no comparison leads from the arm to the base."""
    low: float | None
    high: float | None
    """Ends of the 95% percentile interval; None for the base, and if all resamples give one value. An end is also None
    if too many resamples do not bound the strength on its side, as of an arm that lost once: only the ridge does."""


def rank_arms(
    outcomes: Sequence[PairOutcome],
    arms: Sequence[str],
    base: int,
    clusters: Sequence[int],
    seed: int,
    resamples: int = RESAMPLES,
) -> tuple[ArmStrength, ...]:
    """Fit strengths and resample whole prompts, whose outcomes are correlated.

    Args:
        outcomes: at least one.
        clusters: cluster of each item.
    """
    first, second = (np.array([getattr(o, side) for o in outcomes], dtype=np.int64) for side in ("first", "second"))
    value = np.array([o.value for o in outcomes], dtype=np.float64)
    wins = _wins_by_cluster(first, second, value, np.array([clusters[o.item] for o in outcomes]), len(arms))
    groups = len(wins)
    drawn = np.random.default_rng(seed).multinomial(groups, np.full(groups, 1 / groups), size=resamples)
    tables = np.einsum("bg,gij->bij", drawn.astype(np.float64), wins)
    strength, resampled = (found - found[:, [base]] for found in map(fit_strengths, (wins.sum(0)[None], tables)))
    is_linked = _leads(wins.sum(0) + wins.sum(0).T)[base]
    # Ford 1957, Am. Math. Mon. 64, 28-33: the outcomes bound a difference from above if wins lead from the base to the
    # arm, and from below if they lead back.
    leads = _leads(tables)
    found = []
    for i, arm in enumerate(arms):
        low, high = percentile_interval(resampled[:, i], ~leads[:, i, base], ~leads[:, base, i])
        found.append(ArmStrength(arm=arm, strength=float(strength[0, i]) if is_linked[i] else None, low=low, high=high))
    return tuple(found)


def fit_strengths(wins: Float64) -> Float64:
    """(B, A) strengths with P(i beats j) = σ(s_i − s_j), for B tables at once.

    Minimises −Σ_ij wins_ij log σ(s_i − s_j) + RIDGE/2 Σ s² (Bradley and Terry 1952, Biometrika 39, 324-345), which is
    convex; ``rlhf.feedback.bradley_terry`` fits one large sparse table instead.

    Args:
        wins: (B, A, A) wins of i against j; a tie is half a win of either.
    """
    identity = np.eye(wins.shape[-1])
    first, second = np.triu_indices(wins.shape[-1], 1)
    won, lost = wins[:, first, second], wins[:, second, first]
    return fit_logistic(won, won + lost, identity[first] - identity[second], np.full(wins.shape[-1], RIDGE))


def _wins_by_cluster(first: Int64, second: Int64, value: Float64, clusters: Int64, arms: int) -> Float64:
    """(G, A, A) wins of i against j in each cluster."""
    cluster = np.unique(clusters, return_inverse=True)[1]
    wins = np.zeros((int(cluster.max()) + 1, arms, arms))
    np.add.at(wins, (cluster, first, second), value)
    np.add.at(wins, (cluster, second, first), 1 - value)
    return wins


def _leads(wins: Float64) -> Bool:
    """(..., A, A) whether wins lead from i to j, over others or at once; from each arm to itself they do."""
    leads = (wins > 0) | np.eye(wins.shape[-1], dtype=np.bool_)
    for _ in range(wins.shape[-1].bit_length()):
        leads = leads @ leads
    return leads
