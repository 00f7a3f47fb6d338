"""Which raters guess: the probability that a rater's votes do not depend on which answer is better.

The model is that of Karger, Oh and Shah (2011, "Iterative learning for reliable crowdsourcing systems"): a rater is
honest and right with one probability a on every item, or guesses and is right with probability ½. Inference is by
belief propagation (Liu, Peng and Ihler 2012, "Variational inference for crowdsourcing"), so a rater is never compared
with votes that depend on the rater's own, and the votes of guessing raters lose their weight as judges of the others. a
and the fraction of guessing raters are estimated from all raters. With that fraction as prior, the posterior is one
minus Efron's local false discovery rate: the more raters appear honest, the more evidence one flag takes.

Shapes: n votes for either answer, R raters.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import betaln, expit, logit

from rlhf.feedback.judgements import FIRST, SECOND, Judgements, category, independent
from rlhf.feedback.records import Item, Purpose, Vote
from rlhf.types import Float64, Int64

ROUNDS = 30
"""Of belief propagation; posteriors settle in about ten."""
ACCURACY = (16.0, 4.0)
"""Prior of a: pseudo-votes right and wrong."""
GUESSING = (1.0, 3.0)
"""Prior of the fraction of guessing raters: pseudo-raters that guess and that do not."""
LOWEST, HIGHEST = 0.6, 0.95
"""Bounds of a. Below 0.6 honest raters cannot be told from guessing ones in any reasonable number of votes."""
CERTAIN = 50.0
"""Log-odds of the known winner of a gold item."""
TIE_BUTTONS = 1 / 3
"""Fraction of ties and both bad if all buttons but skip are pressed equally often."""
TIE_SPREAD = 5.0
"""Pseudo-votes with which an honest rater's fraction of ties resembles that of the others: raters differ much in it."""


@dataclass(frozen=True, kw_only=True)
class Guessing:
    """Evidence on one rater."""

    probability: float
    """Posterior probability that the rater guesses."""
    evidence: float
    """Log likelihood ratio of guessing against honest, in nats."""
    votes: int
    """Votes on label and gold items, ties included."""


@dataclass(frozen=True, kw_only=True)
class _Votes:
    """Votes for either answer, (n,) each."""

    item: Int64
    rater: Int64
    sign: Float64
    """1 for the first answer, −1 for the second."""
    known: Float64
    """1 or −1 if the item is gold and its first or second answer is better, else 0."""


def guessing(items: Sequence[Item], votes: Sequence[Vote]) -> dict[str, Guessing]:
    """Rater → evidence, from label items, gold items, ties and repeats; votes of suspended raters do not count."""
    labels, gold = independent(items, votes), independent(items, votes, Purpose.GOLD)
    raters = sorted({*labels.raters, *gold.raters})
    numbers = {rater: i for i, rater in enumerate(raters)}
    ties = _tie_evidence(labels, numbers)
    same, different = _repeats(items, votes, labels, numbers)
    found = _propagate(_decided(labels, gold, numbers), ties, same, different)
    counts = _votes_by_rater(labels, numbers) + _votes_by_rater(gold, numbers)
    return {
        rater: Guessing(probability=float(p), evidence=float(e), votes=int(n))
        for rater, p, e, n in zip(raters, *found, counts)
    }


def _propagate(votes: _Votes, ties: Float64, same: Float64, different: Float64) -> tuple[Float64, Float64]:
    """Posterior probability and evidence of each rater, (R,), by loopy belief propagation."""
    raters, size = len(ties), int(votes.item.max(initial=-1)) + 1
    a, share = ACCURACY[0] / sum(ACCURACY), GUESSING[0] / sum(GUESSING)
    weight = np.full(len(votes.sign), logit(a))
    for _ in range(ROUNDS):
        field = np.bincount(votes.item, weights=votes.sign * weight, minlength=size)
        others = field[votes.item] - votes.sign * weight  # log-odds that the first answer is better, by the others
        right = expit(votes.sign * np.where(votes.known == 0, others, votes.known * CERTAIN))
        honest = right * a + (1 - right) * (1 - a)
        each = np.log(0.5 / honest)
        consistent = a * a + (1 - a) ** 2
        repeats = same * np.log(0.5 / consistent) + different * np.log(0.5 / (1 - consistent))
        evidence = ties + repeats + np.bincount(votes.rater, weights=each, minlength=raters)
        posterior = expit(logit(share) + evidence)
        others_say = expit(logit(share) + evidence[votes.rater] - each)  # without the vote itself
        weight = logit(others_say / 2 + (1 - others_say) * a)
        is_honest = 1 - posterior[votes.rater]
        a = (ACCURACY[0] + is_honest @ (right * a / honest)) / (sum(ACCURACY) + is_honest.sum())
        a = min(max(float(a), LOWEST), HIGHEST)
        share = (GUESSING[0] + posterior.sum()) / (sum(GUESSING) + raters)
    return posterior, evidence


def _decided(labels: Judgements, gold: Judgements, numbers: dict[str, int]) -> _Votes:
    parts = (_signed(labels, numbers, 0), _signed(gold, numbers, len(labels.items)))
    item, rater, sign, known = (np.concatenate(columns) for columns in zip(*parts))
    return _Votes(item=item, rater=rater, sign=sign, known=known)


def _signed(judged: Judgements, numbers: dict[str, int], offset: int) -> tuple[Int64, Int64, Float64, Float64]:
    """Item, rater, sign and known winner of the votes for either answer, without gold items that are no such."""
    golds = [None if item.gold is None else category(item.gold) for item in judged.items]
    of_item = np.array([0 if gold is None else _sign(gold) for gold in golds], dtype=np.float64)
    is_other = np.array([gold not in (None, FIRST, SECOND) for gold in golds], dtype=np.bool_)
    sign = np.array([_sign(outcome) for outcome in judged.category.tolist()], dtype=np.float64)
    kept = (sign != 0) & ~is_other[judged.item]
    rater = np.array([numbers[name] for name in judged.raters], dtype=np.int64)[judged.rater]
    return judged.item[kept] + offset, rater[kept], sign[kept], of_item[judged.item][kept]


def _sign(outcome: int) -> int:
    return (outcome == FIRST) - (outcome == SECOND)


def _votes_by_rater(judged: Judgements, numbers: dict[str, int]) -> Int64:
    return np.bincount([numbers[vote.rater] for vote in judged.votes], minlength=len(numbers)).astype(np.int64)


def _tie_evidence(labels: Judgements, numbers: dict[str, int]) -> Float64:
    """(R,) log likelihood ratio from the number of ties: guessing by button or by side against like the others."""
    rater = np.array([numbers[vote.rater] for vote in labels.votes], dtype=np.int64)
    is_tie = ~np.isin(labels.category, (FIRST, SECOND))
    n = np.bincount(rater, minlength=len(numbers)).astype(np.float64)
    ties = np.bincount(rater, weights=is_tie, minlength=len(numbers))
    usual = (ties.sum() - ties + 0.5) / (n.sum() - n + 5)
    alpha, beta = TIE_SPREAD * usual, TIE_SPREAD * (1 - usual)
    like_others = betaln(alpha + ties, beta + n - ties) - betaln(alpha, beta)
    by_button = ties * np.log(TIE_BUTTONS) + (n - ties) * np.log(1 - TIE_BUTTONS)
    return np.logaddexp(0.0, by_button - like_others) - np.log(2)


def _repeats(
    items: Sequence[Item], votes: Sequence[Vote], labels: Judgements, numbers: dict[str, int]
) -> tuple[Float64, Float64]:
    """(R,) repeats with the same and with the other answer as the rater's first vote."""
    first = {(vote.item, vote.rater): category(vote.choice) for vote in labels.votes}
    same, different = np.zeros((2, len(numbers)))
    for vote in votes:
        before, now = first.get((vote.item, vote.rater)), category(vote.choice)
        if vote.is_repeat and not vote.is_suspended and before in (FIRST, SECOND) and now in (FIRST, SECOND):
            (same if before == now else different)[numbers[vote.rater]] += 1
    return same, different
