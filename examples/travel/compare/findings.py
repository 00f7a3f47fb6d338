"""Sentences about a comparison that follow from its report: which metric to trust, and where one misleads.

Differences are mentioned only where both intervals are apart, so that a sentence is no accident of the sample.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import permutations

from rlhf.arms.report import ComparisonReport
from rlhf.evaluation.agreement_with_people import MetricAgreement, Verdict
from rlhf.evaluation.arm_strengths import ArmStrength
from rlhf.evaluation.bootstrap import Estimate

FACT, LENGTH = "fact", "length"
"""Metrics by which a contradiction is explained."""


@dataclass(frozen=True, kw_only=True)
class Contradiction:
    """A metric that puts an arm above another, and people who clearly put it below."""

    metric: str
    above: str
    below: str


def describe_agreements(agreements: Sequence[MetricAgreement]) -> Iterator[str]:
    """One sentence for each verdict that a metric got."""
    for verdict, one, several in (
        (Verdict.AGREES, "ranks answers as people do", "rank answers as people do"),
        (Verdict.UNDECIDED, "could be chance", "could be chance"),
        (Verdict.INVERTED, "prefers what people reject", "prefer what people reject"),
        (Verdict.NO_VOTES, "has no votes beside it", "have no votes beside them"),
    ):
        found = [each for each in agreements if each.verdict is verdict]
        if found:
            yield f"{_listed([_with_accuracy(each) for each in found])} {one if len(found) == 1 else several}."


def _with_accuracy(agreement: MetricAgreement) -> str:
    accuracy = "" if agreement.accuracy is None else f" ({agreement.accuracy:.2f})"
    return f"`{agreement.metric}`{accuracy}"


def describe_first(report: ComparisonReport) -> Iterator[str]:
    """Which arm people rank first, and which metrics rank another one first."""
    ranked = [each for each in report.ranking_by_people if each.strength is not None]
    if not ranked:
        return
    first = max(ranked, key=lambda each: each.strength or 0.0).arm
    leaders = {each.metric: _leader(report, each.metric) for each in report.agreement}
    same = [f"`{metric}`" for metric, arm in leaders.items() if arm == first]
    agreeing = f", and so {'does' if len(same) == 1 else 'do'} {_listed(same)}." if same else "; no metric does."
    yield f"People rank `{first}` first{agreeing}"
    for arm in dict.fromkeys(arm for arm in leaders.values() if arm not in (first, None)):
        metrics = [f"`{metric}`" for metric, leader in leaders.items() if leader == arm]
        place = 1 + sorted(ranked, key=lambda each: -(each.strength or 0.0)).index(_strength(report, arm))
        yield f"`{arm}`, which is number {place} of {len(ranked)} for people, is first by {_listed(metrics)}."


def _leader(report: ComparisonReport, metric: str) -> str | None:
    """The arm with the largest mean; None if two share it."""
    means = {arm: report.result(metric, arm).mean.value for arm in report.arms}
    best = max((value for value in means.values() if value is not None), default=None)
    leaders = [arm for arm, value in means.items() if value == best]
    return leaders[0] if len(leaders) == 1 else None


def find_contradiction(report: ComparisonReport, metric: str) -> Contradiction | None:
    """The pair of arms whose order by a metric is most clearly not people's; None if there is no such pair."""
    pairs = [
        ((below.strength or 0.0) - (above.strength or 0.0), above.arm, below.arm)
        for above, below in permutations(report.ranking_by_people, 2)
        if _differs(report, metric, above.arm, below.arm) and _is_stronger(below, above)
    ]
    if not pairs:
        return None
    _, above, below = max(pairs)
    return Contradiction(metric=metric, above=above, below=below)


def describe_contradiction(report: ComparisonReport, found: Contradiction) -> Iterator[str]:
    """The contradiction with its numbers, and what the report says of its causes."""
    above, below = found.above, found.below
    metric, people = (_values(report, found.metric, above, below), (_strength(report, above), _strength(report, below)))
    yield (
        f"`{found.metric}` puts `{above}` ({metric[0]:.3g}) above `{below}` ({metric[1]:.3g}); people put it below: "
        f"strengths {people[0].strength:.2f} and {people[1].strength:.2f}."
    )
    measured = {each.metric for each in report.agreement}
    if FACT in measured and _differs(report, FACT, below, above):
        fact = _values(report, FACT, above, below)
        yield f"`{above}` states the right fact in {fact[0]:.0%} of its answers, `{below}` in {fact[1]:.0%}."
    if LENGTH in measured and found.metric != LENGTH and _differs(report, LENGTH, above, below):
        length = _values(report, LENGTH, above, below)
        yield f"Its answers are longer: {length[0]:.0f} characters against {length[1]:.0f}."


def _values(report: ComparisonReport, metric: str, *arms: str) -> list[float]:
    return [report.result(metric, arm).mean.value or 0.0 for arm in arms]


def _differs(report: ComparisonReport, metric: str, high: str, low: str) -> bool:
    return _is_above(report.result(metric, high).mean, report.result(metric, low).mean)


def _is_above(high: Estimate, low: Estimate) -> bool:
    """Whether intervals are apart; a value without an interval is its own."""
    bottom, top = _ends(high.value, high.low, high.high)[0], _ends(low.value, low.low, low.high)[1]
    return bottom is not None and top is not None and bottom > top


def _is_stronger(high: ArmStrength, low: ArmStrength) -> bool:
    bottom, top = _ends(high.strength, high.low, high.high)[0], _ends(low.strength, low.low, low.high)[1]
    return bottom is not None and top is not None and bottom > top


def _ends(value: float | None, low: float | None, high: float | None) -> tuple[float | None, float | None]:
    """The value itself without an interval; a single missing end is not known, and no value is beyond it."""
    if low is None and high is None:
        return value, value
    return low, high


def _strength(report: ComparisonReport, arm: str | None) -> ArmStrength:
    return next(each for each in report.ranking_by_people if each.arm == arm)


def _listed(words: Sequence[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"
