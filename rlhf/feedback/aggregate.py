"""From several votes on an item to one preference, or none, for training.

Three rules share what counts. Only label items and judgements do (``judgements.py``). A vote for both bad names no
better answer and is left out; if most votes of an item say so, the item has no outcome. An adjudicator's decision
replaces the votes on its item, under every rule.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from scipy.special import expit, logit

from rlhf.feedback.bradley_terry import fit_bradley_terry
from rlhf.feedback.dawid_skene import fit_dawid_skene
from rlhf.feedback.judgements import BOTH_BAD, FIRST, SECOND, TIE, Judgements, decisions, independent
from rlhf.feedback.records import Choice, Item, Purpose, Vote
from rlhf.types import Float64, Int64

PSEUDO_VOTES = np.eye(3) + 0.25
"""Of ``dawid_skene``: a rater without votes is right with probability 1.25/1.75, so with few votes the result equals
the majority's."""
RIDGE = 0.5
"""Of ``bradley_terry``: one vote on an isolated pair gives a probability of 0.74, ten equal votes 0.93."""
NO_OUTCOME = "items without outcome"
"""Label items that have no vote that decides, in ``left_out``."""
CLOSEST = 1e-6
"""A smaller difference of strengths, in logits, is a tie: rounding of the fit."""


class Ties(StrEnum):
    """What becomes of an item whose answers are equally good."""

    DROP = "drop"
    """It is not trained on."""
    BOTH_ORDERS = "both_orders"
    """Two outcomes of margin 0, each answer the winner of one. Their loss −log σ(d) − log σ(−d) is smallest at d = 0,
    so they pull the scores together. The losses have no weights, so a tie weighs as much as two preferences. For
    training only: on held-out data one of the two is wrong by construction."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """One preference to train on."""

    item: Item
    first_wins: bool
    """Whether ``item.answers[0]`` is the chosen answer."""
    margin: float
    """How clear the preference is, ≥ 0; the unit is that of the rule. 0 for a tie."""
    probability: float
    """That the chosen answer is the better one, according to the rule; ½ for a tie, 1 for an adjudicator's decision."""
    votes: int
    """Votes that decided, ties included."""
    raters: tuple[str, ...]
    """Who voted, sorted."""


@dataclass(frozen=True, kw_only=True)
class Aggregated:
    """Outcomes in the order of the items, and what gave none."""

    outcomes: tuple[Outcome, ...]
    ties: int
    """Number of items whose answers are equally good."""
    left_out: Mapping[str, int]
    """Reason → number of votes that decided nothing; and ``NO_OUTCOME`` → number of label items."""
    is_converged: bool = True
    """Whether the fit met its tolerance; true for ``majority``, which has none."""


@dataclass(frozen=True, kw_only=True)
class _Ballots:
    """The votes that decide, and those that do not."""

    judged: Judgements
    """Over I items: no votes for both bad, no votes on adjudicated items."""
    decided: Mapping[str, Vote]
    """Item → adjudication."""
    left_out: Counter[str]

    @property
    def counts(self) -> Float64:
        """(I, 3) votes for first, tie, second."""
        return self.judged.counts(3).astype(np.float64)


@dataclass(frozen=True, kw_only=True)
class _Verdicts:
    """A rule's results for the items of ``_Ballots``, (I,) each."""

    sign: Float64
    """1 if the first answer wins, −1 if the second does, 0 for a tie."""
    margin: Float64
    probability: Float64
    is_converged: bool = True


def majority(items: Sequence[Item], votes: Sequence[Vote], ties: Ties = Ties.DROP) -> Aggregated:
    """The answer with more votes wins; equally many, or more ties than votes for either answer, are a tie.

    The margin is the mean strength of all votes in favour of the winner, halved: much = 1, slightly = ½, tie = 0, as
    the small margins of Llama 2 (Touvron et al. 2023, table 27); at least 0. The probability is the share of the
    winner, a tie counting one half.
    """
    ballots = _ballots(items, votes)
    counts = ballots.counts
    lead = counts[:, FIRST] - counts[:, SECOND]
    sign = np.sign(lead) * (counts[:, TIE] <= np.maximum(counts[:, FIRST], counts[:, SECOND]))
    n = np.maximum(counts.sum(1), 1)
    strength = np.bincount(ballots.judged.item, weights=ballots.judged.strength, minlength=len(counts)) / n
    verdicts = _Verdicts(sign=sign, margin=np.maximum(sign * strength / 2, 0), probability=0.5 + sign * lead / n / 2)
    return _aggregated(items, ballots, verdicts, ties)


def dawid_skene(items: Sequence[Item], votes: Sequence[Vote], ties: Ties = Ties.DROP) -> Aggregated:
    """The most probable of first, tie and second, each rater weighing by an estimated confusion matrix.

    See ``fit_dawid_skene``. The probability is that of the winner among first and second, and the margin its logit.
    Better than ``majority`` where raters differ in accuracy and each has dozens of votes.
    """
    ballots = _ballots(items, votes)
    judged = ballots.judged
    model = fit_dawid_skene(judged.item, judged.rater, judged.category, PSEUDO_VOTES)
    p = np.clip(model.classes, 1e-12, 1.0)
    first = p[:, FIRST] / (p[:, FIRST] + p[:, SECOND])
    is_tie = (p[:, TIE] >= p[:, [FIRST, SECOND]].max(1)) | np.isclose(first, 0.5)
    sign = np.where(is_tie, 0.0, np.sign(first - 0.5))
    return _aggregated(items, ballots, _by_log_odds(sign, logit(first), model.is_converged), ties)


def bradley_terry(items: Sequence[Item], votes: Sequence[Vote], ties: Ties = Ties.DROP) -> Aggregated:
    """The answer with the greater Bradley-Terry strength wins.

    Items that share an answer to a prompt are fitted jointly. The margin is the difference of strengths in logits,
    shrunk by a ridge (``fit_bradley_terry``), and the probability its sigmoid. A tie counts half a win for each. An
    isolated pair gets the share of its votes, smoothed towards ½.
    """
    ballots = _ballots(items, votes)
    first, second = _answer_numbers(ballots.judged.items)
    counts = ballots.counts
    wins = counts[:, FIRST] + counts[:, TIE] / 2
    strengths, is_converged = fit_bradley_terry(first, second, wins, counts.sum(1), RIDGE)
    difference = strengths[first] - strengths[second]
    sign = np.where(np.abs(difference) < CLOSEST, 0.0, np.sign(difference))
    return _aggregated(items, ballots, _by_log_odds(sign, difference, is_converged), ties)


def _by_log_odds(sign: Float64, log_odds: Float64, is_converged: bool) -> _Verdicts:
    margin = sign * log_odds
    return _Verdicts(sign=sign, margin=margin, probability=expit(margin), is_converged=is_converged)


def _ballots(items: Sequence[Item], votes: Sequence[Vote]) -> _Ballots:
    decided, judged = _adjudications(items, votes), independent(items, votes)
    counts = judged.counts()
    is_bad = counts[:, BOTH_BAD] > counts[:, :BOTH_BAD].sum(1)
    reasons = [_why_not(v, decided, bad) for v, bad in zip(judged.votes, is_bad[judged.item])]
    left_out = Counter({reason: n for reason, n in judged.left_out.items() if reason != "adjudication"})
    left_out.update(reason for reason in reasons if reason)
    kept = judged.select(not reason for reason in reasons)
    return _Ballots(judged=kept, decided=decided, left_out=left_out)


def _adjudications(items: Sequence[Item], votes: Sequence[Vote]) -> dict[str, Vote]:
    """Label item → its last adjudication; a skip decides nothing."""
    labels = {item.id for item in items if item.purpose is Purpose.LABEL}
    return {v.item: v for v in decisions(votes) if v.item in labels}


def _why_not(vote: Vote, decided: Mapping[str, Vote], is_bad: bool) -> str:
    """Why a judgement does not decide; empty if it does."""
    if vote.item in decided:
        return "adjudicated"
    return "both bad" if is_bad or vote.choice is Choice.BOTH_BAD else ""


def _answer_numbers(items: Sequence[Item]) -> tuple[Int64, Int64]:
    """Numbers of the first and the second answer of each item, equal for equal texts of one prompt, (I,) each."""
    numbers: dict[tuple[object, str], int] = {}
    pairs = [
        [numbers.setdefault((item.prompt, answer.text), len(numbers)) for answer in item.answers] for item in items
    ]
    first, second = np.array(pairs, dtype=np.int64).reshape(-1, 2).T
    return first, second


def _aggregated(items: Sequence[Item], ballots: _Ballots, verdicts: _Verdicts, ties: Ties) -> Aggregated:
    found = _voted(ballots, verdicts)
    found |= {i.id: _decision(i, ballots.decided[i.id]) for i in items if i.id in ballots.decided}
    outcomes = [outcome for item in items for outcome in found.get(item.id, ())]
    tied = sum(len(both) == 2 for both in found.values())
    if ties is Ties.DROP:
        outcomes = [outcome for outcome in outcomes if len(found[outcome.item.id]) == 1]
    unjudged = sum(item.purpose is Purpose.LABEL and not found.get(item.id) for item in items)
    left_out = {**ballots.left_out, **({NO_OUTCOME: unjudged} if unjudged else {})}
    return Aggregated(outcomes=tuple(outcomes), ties=tied, left_out=left_out, is_converged=verdicts.is_converged)


def _voted(ballots: _Ballots, verdicts: _Verdicts) -> dict[str, tuple[Outcome, ...]]:
    """Item → its outcome, or both orders of a tie."""
    voters: list[list[str]] = [[] for _ in ballots.judged.items]
    for item, rater in zip(ballots.judged.item, ballots.judged.rater):
        voters[item].append(ballots.judged.raters[rater])
    rows = zip(
        ballots.judged.items, verdicts.sign.tolist(), verdicts.margin.tolist(), verdicts.probability.tolist(), voters
    )
    return {item.id: _outcomes(item, sign, margin, p, sorted(names)) for item, sign, margin, p, names in rows}


def _decision(item: Item, vote: Vote) -> tuple[Outcome, ...]:
    """What an adjudicator decided; nothing for both bad and for a skip."""
    strength = vote.choice.strength
    if strength is None or vote.choice is Choice.BOTH_BAD:
        return ()
    return _outcomes(item, float(np.sign(strength)), abs(strength) / 2, 1.0, [vote.rater])


def _outcomes(item: Item, sign: float, margin: float, probability: float, raters: Sequence[str]) -> tuple[Outcome, ...]:
    """One outcome, or both orders of a tie."""

    def outcome(first_wins: bool, margin: float, probability: float) -> Outcome:
        return Outcome(
            item=item,
            first_wins=first_wins,
            margin=margin,
            probability=probability,
            votes=len(raters),
            raters=tuple(raters),
        )

    if sign == 0:
        return outcome(True, 0.0, 0.5), outcome(False, 0.0, 0.5)
    return (outcome(sign > 0, margin, probability),)
