"""Sentences about a comparison follow from its numbers, and are left out where intervals overlap."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from examples.travel.compare.findings import (
    Contradiction,
    describe_agreements,
    describe_contradiction,
    describe_first,
    find_contradiction,
)
from rlhf.arms.report import ComparisonReport, ItemValues
from rlhf.evaluation.agreement_with_people import MetricAgreement, Verdict
from rlhf.evaluation.arm_strengths import ArmStrength
from rlhf.evaluation.bootstrap import Estimate
from rlhf.evaluation.chat_endpoint import Usage
from rlhf.evaluation.metric_table import ArmResult

ARMS = ("base", "fluent", "right")
PEOPLE = {"base": 0.0, "fluent": 0.5, "right": 2.0}
MEANS = {
    "fact": {"base": 0.3, "fluent": 0.15, "right": 0.9},
    "length": {"base": 50.0, "fluent": 120.0, "right": 80.0},
    "judge": {"base": 0.5, "fluent": 0.95, "right": 0.7},
}


def estimate(value: float, reach: float) -> Estimate:
    return Estimate(value=value, low=value - reach, high=value + reach, items=100)


def agreement(metric: str, accuracy: float, verdict: Verdict) -> MetricAgreement:
    return MetricAgreement(
        metric=metric,
        accuracy=accuracy,
        low=accuracy - 0.05,
        high=accuracy + 0.05,
        preferences=100,
        ties=0,
        failed=0,
        verdict=verdict,
    )


def report(people: Mapping[str, float] = PEOPLE, reach: float = 0.05) -> ComparisonReport:
    table = [
        ArmResult(metric=metric, arm=arm, mean=estimate(value, reach), difference=None, failed=0, corpus=None)
        for metric, means in MEANS.items()
        for arm, value in means.items()
    ]
    ranking = [ArmStrength(arm=arm, strength=s, low=s - 0.2, high=s + 0.2) for arm, s in people.items()]
    return ComparisonReport(
        items=100,
        arms=ARMS,
        base="base",
        table=tuple(table),
        judged={},
        ranking_by_judge=(),
        ranking_by_people=tuple(ranking),
        agreement=tuple(agreement(metric, 0.7, Verdict.AGREES) for metric in MEANS),
        votes=300,
        unmatched_votes=0,
        usage=Usage(),
        values=ItemValues(items=(), clusters=(), metrics={}),
    )


def test_verdicts_are_told_by_kind() -> None:
    found = [
        agreement("rougeL", 0.7, Verdict.AGREES),
        agreement("chrf", 0.65, Verdict.AGREES),
        agreement("length", 0.5, Verdict.UNDECIDED),
        agreement("judge", 0.3, Verdict.INVERTED),
    ]
    assert list(describe_agreements(found)) == [
        "`rougeL` (0.70) and `chrf` (0.65) rank answers as people do.",
        "`length` (0.50) could be chance.",
        "`judge` (0.30) prefers what people reject.",
    ]


def test_the_first_arm_of_people_and_of_metrics() -> None:
    assert list(describe_first(report())) == [
        "People rank `right` first, and so does `fact`.",
        "`fluent`, which is number 2 of 3 for people, is first by `length` and `judge`.",
    ]
    assert list(describe_first(report(people={}))) == []


def test_a_contradiction_is_the_clearest_pair_with_its_causes() -> None:
    found = find_contradiction(report(), "judge")
    assert found == Contradiction(metric="judge", above="fluent", below="right")
    assert list(describe_contradiction(report(), found)) == [
        "`judge` puts `fluent` (0.95) above `right` (0.7); people put it below: strengths 0.50 and 2.00.",
        "`fluent` states the right fact in 15% of its answers, `right` in 90%.",
        "Its answers are longer: 120 characters against 80.",
    ]


def test_without_a_clear_difference_there_is_no_contradiction() -> None:
    assert find_contradiction(report(reach=0.2), "judge") is None  # 0.75 to 1.15 and 0.5 to 0.9
    assert find_contradiction(report(people={**PEOPLE, "fluent": 1.7}), "judge") is None
    assert find_contradiction(report(), "fact") == Contradiction(metric="fact", above="base", below="fluent")
    assert find_contradiction(report(people={"base": 0.5, "fluent": 0.0, "right": 2.0}), "fact") is None


def test_an_end_that_is_not_known_contradicts_nothing() -> None:
    given = report()
    for arm, end in (("fluent", "high"), ("right", "low")):
        ranking = tuple(replace(r, **{end: None}) if r.arm == arm else r for r in given.ranking_by_people)
        assert find_contradiction(replace(given, ranking_by_people=ranking), "judge") is None
    alone = tuple(replace(r, low=None, high=None) if r.arm == "fluent" else r for r in given.ranking_by_people)
    assert find_contradiction(replace(given, ranking_by_people=alone), "judge") is not None
