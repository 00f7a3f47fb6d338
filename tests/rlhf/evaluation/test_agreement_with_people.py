"""Metrics against people's votes: one that agrees, one of noise, one that is inverted, and who may gate."""

from __future__ import annotations

import numpy as np
import pytest

from rlhf.errors import UserError
from rlhf.evaluation.agreement_with_people import (
    ArmPreference,
    MetricAgreement,
    Verdict,
    measure_agreement,
    require_can_gate,
)
from rlhf.evaluation.metric_table import MetricScores

N = 200


def agreement(values: np.ndarray, people: list[ArmPreference], name: str = "m") -> MetricAgreement:
    return measure_agreement(MetricScores(name=name, values=values), people, range(len(values)))


def planted() -> tuple[list[ArmPreference], dict[str, np.ndarray]]:
    """People follow a hidden quality with noise; a metric does so too, one is random, one is the quality's negative."""
    draw = np.random.default_rng(3)
    quality = draw.normal(size=(N, 2))
    seen = quality + draw.normal(0, 0.5, (N, 2))
    people = [ArmPreference(item=i, winner=int(row.argmax()), loser=int(row.argmin())) for i, row in enumerate(seen)]
    metrics = {
        "agreeing": quality + draw.normal(0, 0.5, (N, 2)),
        "noise": draw.normal(size=(N, 2)),
        "inverted": -quality + draw.normal(0, 0.5, (N, 2)),
    }
    return people, metrics


def test_planted_metrics_get_their_verdicts_and_only_one_may_gate() -> None:
    people, metrics = planted()
    found = {name: agreement(values, people, name) for name, values in metrics.items()}
    assert {name: each.verdict for name, each in found.items()} == {
        "agreeing": Verdict.AGREES,
        "noise": Verdict.UNDECIDED,
        "inverted": Verdict.INVERTED,
    }
    report = {"agreement": [each.as_json() for each in found.values()]}
    require_can_gate(report, "agreeing")
    with pytest.raises(UserError, match="noise cannot gate\n  why: its agreement with people could be chance"):
        require_can_gate(report, "noise")
    with pytest.raises(UserError, match="inverted cannot gate\n  why: it prefers the answers that people reject"):
        require_can_gate(report, "inverted")


def test_accuracy_by_hand_and_a_tie_is_one_half() -> None:
    values = np.array([[2.0, 1.0], [1.0, 2.0], [1.0, 1.0], [3.0, 0.0]])
    people = [ArmPreference(item=i, winner=0, loser=1) for i in range(4)]
    found = agreement(values, people)
    assert (found.accuracy, found.ties, found.preferences, found.failed) == (2.5 / 4, 1, 4, 0)
    # Wilson's interval of 2.5 of 4, z² = 3.8415: centre (0.625 + z²/8)/(1 + z²/4) = 0.5638, half width
    # 1.95996 · √(0.625 · 0.375/4 + z²/64)/(1 + z²/4) = 0.3443.
    assert (found.low, found.high) == pytest.approx((0.5638 - 0.3443, 0.5638 + 0.3443), abs=2e-4)


def test_failures_are_no_ties_and_too_many_close_the_gate() -> None:
    values = np.column_stack([np.ones(100), np.zeros(100)])
    people = [ArmPreference(item=i, winner=0, loser=1) for i in range(100)]
    values[:5] = np.nan
    assert agreement(values, people).accuracy == 1.0
    assert agreement(values, people).why_not == ""
    values[:6] = np.nan
    assert (agreement(values, people).failed, agreement(values, people).verdict) == (6, Verdict.AGREES)
    assert agreement(values, people).why_not == "it failed on 6 of 100 answers that people compared"


@pytest.mark.parametrize("votes", [4, 19, 20])
def test_a_few_preferences_open_no_gate(votes: int) -> None:
    people = [ArmPreference(item=i, winner=0, loser=1) for i in range(votes)]
    found = agreement(np.tile([1.0, 0.0], (votes, 1)), people)
    assert found.verdict is Verdict.AGREES
    expected = "" if votes == 20 else f"people have {votes} preferences between its answers, and 20 are needed"
    assert found.why_not == expected


def test_without_votes_nothing_may_gate() -> None:
    found = agreement(np.ones((3, 2)), [])
    assert (found.verdict, found.accuracy, found.low, found.high) == (Verdict.NO_VOTES, None, 0.0, 1.0)
    assert found.as_json()["can_gate"] is False


def test_many_pairs_of_one_prompt_count_as_few() -> None:
    values = np.tile([1.0, 0.0], (40, 1))
    people = [ArmPreference(item=i, winner=0, loser=1) for i in range(40)]
    scores = MetricScores(name="m", values=values)
    assert measure_agreement(scores, people, [0] * 40).verdict is Verdict.UNDECIDED
    assert measure_agreement(scores, people, range(40)).verdict is Verdict.AGREES


def test_an_unknown_metric_is_no_gate() -> None:
    with pytest.raises(UserError, match="no metric 'rogue1'"):
        require_can_gate({"agreement": [agreement(np.ones((3, 2)), [], "rouge1").as_json()]}, "rogue1")
