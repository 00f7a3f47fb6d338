"""Accuracy and calibration of a reward model on votes: overall, by category, rater and version of the guidelines.

A reward model predicts that the first of two answers wins with probability σ(r_first − r_second) (Bradley and Terry
1952). Accuracy asks only for the sign; calibration asks whether answers that win by that probability win that often.
Shapes: n judgements.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np
from scipy.special import expit

from rlhf.errors import NonFiniteError
from rlhf.evaluation.intervals import share_interval
from rlhf.evaluation.reward_bench import section_accuracies

BINS = 10
"""Bins of equal width of the predicted probability, from 0.5 to 1."""
UNKNOWN_RATER, NO_GUIDELINE = "unknown", "none"


@dataclass(frozen=True, kw_only=True)
class ScoredJudgement:
    """A decided judgement of two answers, beside the difference of their rewards."""

    difference: float
    """r_first − r_second."""
    first_wins: bool
    prompt: Hashable
    """Judgements of one prompt are correlated."""
    rater: str = UNKNOWN_RATER
    guideline: int | None = None
    category: str | None = None

    @property
    def is_correct(self) -> bool:
        """Whether the rewards rank the answers as the rater did; equal rewards do not."""
        return self.difference > 0 if self.first_wins else self.difference < 0


@dataclass(frozen=True, kw_only=True)
class Accuracy:
    """Fraction of judgements that the rewards rank alike, with its 95% interval, clustered by prompt."""

    judgements: int
    accuracy: float
    low: float
    high: float
    ties: int
    """Judgements on answers of equal rewards, which count as wrong."""


@dataclass(frozen=True, kw_only=True)
class CalibrationBin:
    """Judgements whose predicted probability of the answer with the higher reward lies in one bin."""

    judgements: int
    predicted: float
    """Mean predicted probability that the answer with the higher reward wins."""
    observed: float
    """Fraction of them that it won."""


@dataclass(frozen=True, kw_only=True)
class RewardAccuracy:
    """Result of an evaluation."""

    overall: Accuracy
    log_loss: float
    """Mean of −log σ(difference of the winner and the loser), in nats; 0.693 is a coin."""
    brier: float
    """Mean squared difference of predicted probability and outcome; 0.25 is a coin."""
    calibration_error: float
    """Mean of |predicted − observed| over the bins, weighted by their judgements (Naeini et al. 2015, ECE)."""
    calibration: tuple[CalibrationBin, ...]
    """Bins with a judgement, by increasing probability."""
    by_rater: Mapping[str, Accuracy]
    by_guideline: Mapping[str, Accuracy]
    by_category: Mapping[str, Accuracy]
    """Of outcomes, by their category; empty without categories."""
    by_section: Mapping[str, float]
    """Accuracy of RewardBench's sections, if the categories are its subsets."""

    @property
    def mean_accuracy(self) -> float | None:
        """Mean over the sections, which is RewardBench's score, or over the categories; None without categories."""
        found = [*self.by_section.values()] or [each.accuracy for each in self.by_category.values()]
        return float(np.mean(found)) if found else None

    def as_json(self) -> dict[str, object]:
        """The result as JSON values."""
        return {**asdict(self), "mean_accuracy": self.mean_accuracy}


def reward_accuracy(outcomes: Sequence[ScoredJudgement], votes: Sequence[ScoredJudgement] = ()) -> RewardAccuracy:
    """Compare rewards with judgements.

    Args:
        outcomes: one per item, the raters' votes on it taken together; at least one.
        votes: single votes, for the accuracy by rater and by guideline version; by default ``outcomes``.

    Raises:
        NonFiniteError: a reward is NaN or infinite.
    """
    votes = votes or outcomes
    bad = sum(not np.isfinite(each.difference) for each in (*outcomes, *votes))
    if bad:
        raise NonFiniteError(f"numbers that are NaN or infinite, in differences of rewards: {bad} judgements")
    margin = np.array([each.difference if each.first_wins else -each.difference for each in outcomes])
    probability = expit(margin)
    bins = _calibration(margin)
    categories = _grouped([each for each in outcomes if each.category is not None], lambda each: str(each.category))
    return RewardAccuracy(
        overall=_accuracy(outcomes),
        log_loss=float(np.logaddexp(0.0, -margin).mean()),
        brier=float(np.square(1 - probability).mean()),
        calibration_error=float(sum(abs(b.predicted - b.observed) * b.judgements for b in bins) / len(outcomes)),
        calibration=bins,
        by_rater=_grouped(votes, lambda each: each.rater),
        by_guideline=_grouped(votes, lambda each: NO_GUIDELINE if each.guideline is None else str(each.guideline)),
        by_category=categories,
        by_section=section_accuracies(
            {name: each.accuracy for name, each in categories.items()},
            {name: each.judgements for name, each in categories.items()},
        ),
    )


def _accuracy(judgements: Sequence[ScoredJudgement]) -> Accuracy:
    correct = np.array([each.is_correct for each in judgements])
    prompts = {prompt: i for i, prompt in enumerate(dict.fromkeys(each.prompt for each in judgements))}
    low, high = share_interval(correct, [prompts[each.prompt] for each in judgements])
    ties = sum(each.difference == 0 for each in judgements)
    return Accuracy(judgements=len(judgements), accuracy=float(correct.mean()), low=low, high=high, ties=ties)


def _grouped(judgements: Sequence[ScoredJudgement], key: Callable[[ScoredJudgement], str]) -> dict[str, Accuracy]:
    groups: dict[str, list[ScoredJudgement]] = {}
    for each in judgements:
        groups.setdefault(key(each), []).append(each)
    return {name: _accuracy(groups[name]) for name in sorted(groups)}


def _calibration(margin: np.ndarray) -> tuple[CalibrationBin, ...]:
    """Bins of the probability of the answer with the higher reward; equal rewards count as half a win.

    Args:
        margin: (n,) reward of the winner minus that of the loser.
    """
    predicted = expit(np.abs(margin))
    won = np.where(margin == 0, 0.5, margin > 0)
    which = np.minimum(((predicted - 0.5) * 2 * BINS).astype(int), BINS - 1)
    return tuple(
        CalibrationBin(
            judgements=int((which == i).sum()),
            predicted=float(predicted[which == i].mean()),
            observed=float(won[which == i].mean()),
        )
        for i in range(BINS)
        if (which == i).any()
    )
