"""The accuracy that a perfect reward model reaches on held-out votes, given that raters err.

Assumptions: each vote names the better answer with probability 1 − e, independently of the other votes on the item,
with one e < ½ for all raters and items. Then two votes on one item agree with probability a = e² + (1 − e)², so that
e = (1 − √(2a − 1))/2. If items differ in difficulty, or raters in accuracy, 2a − 1 is the mean of (1 − 2e)² and exceeds
the square of the mean: the ceiling comes out too high, as an upper bound. Errors that raters share, such as a
preference for length, raise a and are not seen: relative to what raters agree on they are no errors.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from scipy.special import bdtrc

from rlhf.evaluation.bootstrap import Estimate, Measure, estimate
from rlhf.feedback.coefficients import divide, fleiss_parts, raw_agreement
from rlhf.feedback.judgements import FIRST, SECOND, Judgements, independent
from rlhf.feedback.records import Item, Vote
from rlhf.storage.jsonl import json_safe
from rlhf.types import Float64, Int64

UNIDENTIFIED = "two votes on an item agree in half of the cases or fewer, as coins do: the error rate is not identified"


@dataclass(frozen=True, kw_only=True)
class Ceiling:
    """Accuracy ceilings with 95% bootstrap intervals by prompt, from votes for either answer."""

    agreement: Estimate
    """Probability that two votes on an item agree: the mean over items of the fraction of agreeing pairs."""
    error: Estimate
    """Probability e that a vote names the worse answer."""
    single: Estimate
    """Ceiling if each vote is a held-out label: 1 − e."""
    majority: Estimate
    """Ceiling if the label of each item is the majority of its votes, over the items that have one."""

    def as_json(self) -> dict[str, Any]:
        """JSON types only, and ``accuracy_ceiling`` for the recipe's ``reward.ceiling``: that of majority labels."""
        return {"accuracy_ceiling": self.majority.value, **json_safe(asdict(self))}


def estimate_ceiling(items: Sequence[Item], votes: Sequence[Vote], *, seed: int = 0, resamples: int = 1000) -> Ceiling:
    """Estimate the ceilings from label items with at least two votes for either answer; others are left out."""
    judged = independent(items, votes)
    decided = judged.select(np.isin(judged.category, (FIRST, SECOND)).tolist())
    counts = _sides(decided)
    sizes = counts.sum(1)
    parts = np.column_stack([fleiss_parts(counts)[:, :2], _majority_sizes(counts)])[sizes > 1]
    measures = [Measure(parts, statistic) for statistic in (raw_agreement, _error, _single, _majority)]
    found = estimate(measures, decided.clusters[sizes > 1], undefined=UNIDENTIFIED, seed=seed, resamples=resamples)
    return Ceiling(**dict(zip(("agreement", "error", "single", "majority"), found)))


def _sides(decided: Judgements) -> Int64:
    """(U, 2) votes for the first and the second answer."""
    return decided.counts()[:, [FIRST, SECOND]]


def _majority_sizes(counts: Int64) -> Int64:
    """(U, M) the number of votes of each item as an indicator, where M is the largest; 0 for draws."""
    sizes = counts.sum(1)
    has_majority = counts[:, 0] != counts[:, 1]
    return (sizes[:, None] == np.arange(1, sizes.max(initial=1) + 1)) * has_majority[:, None]


def _error(parts: Float64) -> Float64:
    """e, (...); NaN where the agreement is ½ or less."""
    excess = 2 * raw_agreement(parts) - 1
    return (1 - np.sqrt(np.where(excess > 0, excess, np.nan))) / 2


def _single(parts: Float64) -> Float64:
    return 1 - _error(parts)


def _majority(parts: Float64) -> Float64:
    """Mean over the items with a majority of the probability that it is right."""
    items = parts[..., 2:]
    right = majority_accuracy(np.arange(1, items.shape[-1] + 1), _error(parts)[..., None])
    return divide((items * right).sum(-1), items.sum(-1))


def majority_accuracy(votes: Int64, error: Float64) -> Float64:
    """Probability that the majority of independent votes with one error rate is right, given that there is one.

    With k votes it is P(X > k/2)/(1 − P(X = k/2)), X binomial with k and 1 − e (Condorcet 1785); arguments broadcast.
    """
    k, e = np.broadcast_arrays(votes, error)
    right = bdtrc(k // 2, k, 1 - e)
    wrong = bdtrc(k // 2, k, e)
    return right / (right + wrong)
