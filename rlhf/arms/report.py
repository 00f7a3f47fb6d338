"""The result of a comparison: one table of metrics by arm, rankings, agreement with people, and what may gate.

Shapes: I items, A arms.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from hashlib import sha256
from typing import Any

import numpy as np

from rlhf.arms.answers import Arms
from rlhf.arms.metrics import Measured
from rlhf.arms.people import PeoplesVotes
from rlhf.evaluation.academic_tasks import TaskResult
from rlhf.evaluation.agreement_with_people import MetricAgreement, measure_agreement
from rlhf.evaluation.arm_strengths import ArmStrength, PairOutcome, rank_arms
from rlhf.evaluation.chat_endpoint import Usage
from rlhf.evaluation.judge import PairJudgements, PairResult, summarise_pairs
from rlhf.evaluation.length_control import LengthControl, length_controlled
from rlhf.evaluation.metric_table import ArmResult, summarise
from rlhf.evaluation.power import POWER, PromptsNeeded, prompts_for
from rlhf.storage.jsonl import json_safe
from rlhf.types import Int64


@dataclass(frozen=True, kw_only=True)
class JudgedArm:
    """An arm against the base, in the judge's eyes."""

    pairs: PairResult
    length_controlled: LengthControl | None


@dataclass(frozen=True, kw_only=True)
class ItemValues:
    """Every metric's value on every item, NaN where it failed."""

    items: tuple[str, ...]
    """Identifies each item by a hash of its prompt: a report holds no texts."""
    clusters: tuple[int, ...]
    """Cluster of each item."""
    metrics: Mapping[str, Mapping[str, tuple[float, ...]]]
    """Metric → arm → values."""


@dataclass(frozen=True, kw_only=True)
class ComparisonReport:
    """All results of a comparison."""

    items: int
    arms: tuple[str, ...]
    base: str
    table: tuple[ArmResult, ...]
    """By metric, then by arm."""
    judged: Mapping[str, JudgedArm]
    """By arm, without the base."""
    ranking_by_judge: tuple[ArmStrength, ...]
    ranking_by_people: tuple[ArmStrength, ...]
    agreement: tuple[MetricAgreement, ...]
    """Of each metric with the votes of people, in the order of the metrics."""
    votes: int
    unmatched_votes: int
    """Voted items of the project that are not of this comparison."""
    usage: Usage
    values: ItemValues
    """What the table is made of, for a gate."""
    academic: tuple[TaskResult, ...] = ()
    """Results of ``lm_eval``."""
    ambiguous_votes: int = 0
    """Voted items with a text that several arms gave, and no policy that names one of them."""

    def as_json(self) -> dict[str, Any]:
        """The report as JSON values; ``agreement`` holds ``can_gate`` and ``why_not`` for a later gate."""
        content = asdict(self)
        content["agreement"] = [each.as_json() for each in self.agreement]
        return dict(json_safe(content))

    def result(self, metric: str, arm: str) -> ArmResult:
        """One cell of the table.

        Raises:
            KeyError: the comparison has no such metric or arm.
        """
        return {(each.metric, each.arm): each for each in self.table}[metric, arm]


def report(
    arms: Arms,
    measured: Measured,
    people: PeoplesVotes | None,
    usage: Usage,
    seed: int,
    academic: tuple[TaskResult, ...] = (),
) -> ComparisonReport:
    """Compute the statistics of measured metrics.

    Args:
        people: votes on these arms; None without any, and then no metric can gate.
    """
    clusters = arms.clusters
    preferences = people.preferences if people else ()
    return ComparisonReport(
        items=len(arms.items),
        arms=arms.names,
        base=arms.names[arms.base],
        table=tuple(cell for s in measured.scores for cell in summarise(s, arms.names, arms.base, clusters, seed)),
        judged=_judged(arms, measured.pairs, clusters, seed),
        ranking_by_judge=_ranking(outcomes_of_judge(arms, measured.pairs), arms, seed),
        ranking_by_people=_ranking(people.outcomes if people else (), arms, seed),
        agreement=tuple(measure_agreement(scores, preferences, clusters.tolist()) for scores in measured.scores),
        votes=people.votes if people else 0,
        unmatched_votes=people.unmatched if people else 0,
        ambiguous_votes=people.ambiguous if people else 0,
        usage=usage,
        values=_values(arms, measured),
        academic=academic,
    )


def needed_prompts(
    arms: Arms, measured: Measured, difference: float, power: float = POWER
) -> dict[str, dict[str, PromptsNeeded]]:
    """Prompts that a ``difference`` from the base needs, by metric and arm, from this run's deviations."""
    found: dict[str, dict[str, PromptsNeeded]] = {}
    for scores in measured.scores:
        for i, arm in enumerate(arms.names):
            paired = scores.values[:, i] - scores.values[:, arms.base]
            is_known = ~np.isnan(paired)
            if i != arms.base and is_known.sum() > 1:
                needed = prompts_for(paired[is_known], arms.clusters[is_known], difference, power)
                found.setdefault(scores.name, {})[arm] = needed
    return found


def outcomes_of_judge(arms: Arms, pairs: Mapping[str, PairJudgements]) -> list[PairOutcome]:
    """Judged pairs of every arm and the base, both orders averaged; failed ones are left out."""
    return [
        PairOutcome(item=item, first=arm, second=arms.base, value=float(value))
        for arm, name in enumerate(arms.names)
        if name in pairs and arm != arms.base
        for item, value in enumerate(pairs[name].values)
        if not np.isnan(value)
    ]


def _values(arms: Arms, measured: Measured) -> ItemValues:
    return ItemValues(
        items=tuple(sha256(item.prompt.encode(errors="backslashreplace")).hexdigest()[:16] for item in arms.items),
        clusters=tuple(arms.clusters.tolist()),
        metrics={
            scores.name: {arm: tuple(scores.values[:, i].tolist()) for i, arm in enumerate(arms.names)}
            for scores in measured.scores
        },
    )


def _judged(arms: Arms, pairs: Mapping[str, PairJudgements], clusters: Int64, seed: int) -> dict[str, JudgedArm]:
    base = np.array([len(text) for text in arms.arms[arms.base].first])
    found = {}
    for i, arm in enumerate(arms.arms):
        if arm.name in pairs and i != arms.base:
            lengths = np.array([len(text) for text in arm.first])
            values = pairs[arm.name].values
            control = length_controlled(values, lengths, base, clusters.tolist(), seed)
            found[arm.name] = JudgedArm(
                pairs=summarise_pairs(pairs[arm.name], clusters, seed), length_controlled=control
            )
    return found


def _ranking(outcomes: Sequence[PairOutcome], arms: Arms, seed: int) -> tuple[ArmStrength, ...]:
    return rank_arms(outcomes, arms.names, arms.base, arms.clusters.tolist(), seed) if outcomes else ()
