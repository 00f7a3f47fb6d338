"""Dawid and Skene's model of raters with individual confusion matrices, estimated by EM.

Shapes: n votes, I items, R raters, K classes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from rlhf.types import Float64, Int64

MOST_ITERATIONS = 2000
TOLERANCE = 1e-5
"""EM has converged when no item's class probability changes by more."""


@dataclass(frozen=True, kw_only=True)
class RaterModel:
    """Estimates of the model."""

    classes: Float64
    """(I, K) probability of each item's true class."""
    prior: Float64
    """(K,) frequency of the true classes."""
    confusion: Float64
    """(R, K, K) probability that a rater votes l on an item of class k; rows sum to 1."""
    is_converged: bool
    """Whether EM met its tolerance."""


def fit_dawid_skene(item: Int64, rater: Int64, vote: Int64, pseudo_votes: Float64) -> RaterModel:
    """Fit the model by EM from the shares of each item's votes (Dawid and Skene 1979, Appl. Stat. 28, 20-28).

    Args:
        item, rater, vote: (n,) indices of the votes' items and raters, each of which has a vote, and the voted class.
        pseudo_votes: (K, K) added to every rater's count of votes l on items of class k, so that a rater with few votes
            is neither certain nor misread; zeros give the published maximum-likelihood estimate.
    """
    posterior = _vote_shares(item, vote, len(pseudo_votes))
    for _ in range(MOST_ITERATIONS):
        prior, confusion = _maximise(posterior, item, rater, vote, pseudo_votes)
        updated = _expect(prior, confusion, item, rater, vote, len(posterior))
        change = np.abs(updated - posterior).max(initial=0.0)
        posterior = updated
        if change < TOLERANCE:
            break
    return RaterModel(classes=posterior, prior=prior, confusion=confusion, is_converged=bool(change < TOLERANCE))


def _vote_shares(item: Int64, vote: Int64, classes: int) -> Float64:
    size = int(item.max(initial=-1)) + 1
    counts = np.bincount(item * classes + vote, minlength=size * classes).reshape(size, classes)
    return counts / counts.sum(1, keepdims=True)


def _maximise(
    posterior: Float64, item: Int64, rater: Int64, vote: Int64, pseudo_votes: Float64
) -> tuple[Float64, Float64]:
    """M step: prior (K,) and confusion (R, K, K). A class that no vote supports gets a uniform row."""
    k = posterior.shape[1]
    cells = np.tile(pseudo_votes.T.astype(np.float64), (int(rater.max(initial=-1)) + 1, 1, 1))  # rater, vote, class
    np.add.at(cells, (rater, vote), posterior[item])
    cells = cells.swapaxes(1, 2)
    totals = cells.sum(2, keepdims=True)
    prior = posterior.sum(0) / max(len(posterior), 1)
    return prior, np.where(totals > 0, cells / np.where(totals > 0, totals, 1), 1 / k)


def _expect(prior: Float64, confusion: Float64, item: Int64, rater: Int64, vote: Int64, size: int) -> Float64:
    """E step: class probabilities (I, K)."""
    with np.errstate(divide="ignore"):  # log 0 = −inf rules a class out
        logs = np.tile(np.log(prior), (size, 1))
        np.add.at(logs, item, np.log(confusion[rater, :, vote]))
    weights = np.exp(logs - logs.max(1, keepdims=True))
    return weights / weights.sum(1, keepdims=True)
