"""Agreement of a metric with people's votes on the same answers, and whether the metric may gate.

A metric earns trust in a run by ranking that run's answers as people do. One whose accuracy could be a coin's, or is
below it, cannot decide what is released.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any

import numpy as np

from rlhf.errors import UserError
from rlhf.evaluation.intervals import effective_size, wilson_interval
from rlhf.evaluation.metric_table import MetricScores

CHANCE = 0.5
LEAST_PREFERENCES = 20
"""Of people, for a metric that gates: with 4, one in 15 metrics of pure noise agrees."""
MOST_FAILED = 0.05
"""Largest fraction of the compared answers on which a metric that gates may have failed."""


class Verdict(StrEnum):
    """How a metric relates to people's votes."""

    AGREES = "agrees"
    """The interval of its accuracy lies above chance."""
    UNDECIDED = "undecided"
    """The interval includes chance: noise, or too few votes."""
    INVERTED = "inverted"
    """The interval lies below chance: it prefers what people reject."""
    NO_VOTES = "no votes"


@dataclass(frozen=True, kw_only=True)
class ArmPreference:
    """People's decided preference between the answers of two arms to one item."""

    item: int
    winner: int
    loser: int


@dataclass(frozen=True, kw_only=True)
class MetricAgreement:
    """Fraction of people's preferences that a metric ranks alike; a tie of the metric counts one half."""

    metric: str
    accuracy: float | None
    low: float
    high: float
    """Ends of Wilson's 95% interval over the effective number of preferences, clustered by prompt."""
    preferences: int
    ties: int
    """Preferences between answers to which the metric gives the same value."""
    failed: int
    """Preferences on which the metric has no value; they are not in the accuracy."""
    verdict: Verdict

    @property
    def why_not(self) -> str:
        """Why the metric cannot gate; empty if it can."""
        if self.failed > MOST_FAILED * (self.preferences + self.failed):
            return f"it failed on {self.failed:,} of {self.preferences + self.failed:,} answers that people compared"
        if self.verdict is Verdict.AGREES:
            few = f"people have {self.preferences} preferences between its answers, and {LEAST_PREFERENCES} are needed"
            return few if self.preferences < LEAST_PREFERENCES else ""
        if self.accuracy is None:
            return "people voted on no two answers of this run"
        interval = f"{self.accuracy:.2f} [{self.low:.2f}, {self.high:.2f}] of {self.preferences:,}"
        if self.verdict is Verdict.INVERTED:
            return f"it prefers the answers that people reject: accuracy {interval}"
        return f"its agreement with people could be chance: accuracy {interval}"

    def as_json(self) -> dict[str, Any]:
        """The agreement as JSON values, with ``can_gate`` and ``why_not``."""
        return {**asdict(self), "can_gate": not self.why_not, "why_not": self.why_not}


def measure_agreement(
    scores: MetricScores, people: Sequence[ArmPreference], clusters: Sequence[int]
) -> MetricAgreement:
    """Compare the sign of a metric's difference with people's majority.

    Args:
        people: decided preferences; ties of people are left out, since a metric cannot be right about them.
        clusters: cluster of each item.
    """
    margin = np.array([scores.values[p.item, p.winner] - scores.values[p.item, p.loser] for p in people])
    is_known = ~np.isnan(margin)
    correct = np.where(margin > 0, 1.0, np.where(margin < 0, 0.0, CHANCE))[is_known]
    prompts = np.array([clusters[p.item] for p in people])[is_known]
    n = len(correct)
    size = effective_size(correct, prompts) if n else 0.0
    low, high = wilson_interval(float(correct.sum()) * size / max(n, 1), size)
    return MetricAgreement(
        metric=scores.name,
        accuracy=float(correct.mean()) if n else None,
        low=low,
        high=high,
        preferences=n,
        ties=int((margin == 0).sum()),
        failed=len(people) - n,
        verdict=_verdict(n, low, high),
    )


def _verdict(n: int, low: float, high: float) -> Verdict:
    if n == 0:
        return Verdict.NO_VOTES
    if low > CHANCE:
        return Verdict.AGREES
    return Verdict.INVERTED if high < CHANCE else Verdict.UNDECIDED


def require_can_gate(report: Mapping[str, Any], metric: str) -> None:
    """Refuse a gate on a metric that does not agree with people.

    Args:
        report: the JSON that ``rlhf evaluate --comparison`` writes.

    Raises:
        UserError: the report has no such metric, or the metric cannot gate.
    """
    entries = {each["metric"]: each for each in report.get("agreement", ())}
    if metric not in entries:
        fix = f"name one of {', '.join(entries)}" if entries else "write the report by `rlhf evaluate --comparison`"
        raise UserError(f"the evaluation has no metric {metric!r}", fix=fix)
    if not entries[metric]["can_gate"]:
        fix = "gate on a metric that agrees with people, or collect more votes on these answers"
        raise UserError(f"{metric} cannot gate", entries[metric]["why_not"], fix)
