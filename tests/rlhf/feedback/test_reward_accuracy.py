from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest

from rlhf.errors import MachineryError
from rlhf.feedback.reward_accuracy import ScoredJudgement, reward_accuracy


def judgement(
    difference: float, first_wins: bool = True, prompt: str = "", rater: str = "ann", guideline: int | None = None
) -> ScoredJudgement:
    return ScoredJudgement(
        difference=difference,
        first_wins=first_wins,
        prompt=prompt or f"{difference} {first_wins}",
        rater=rater,
        guideline=guideline,
    )


LOG3 = math.log(3)  # σ(log 3) = 3/4


def test_numbers_by_hand() -> None:
    found = reward_accuracy([judgement(LOG3), judgement(-LOG3, False, "b"), judgement(LOG3, False), judgement(0.0)])
    assert found.overall.judgements == 4
    assert found.overall.accuracy == 0.5  # a difference of 0 ranks neither
    # −log ¾ twice, −log ¼, −log ½
    assert found.log_loss == pytest.approx((2 * math.log(4 / 3) + math.log(4) + math.log(2)) / 4)
    assert found.brier == pytest.approx((2 * (1 / 4) ** 2 + (3 / 4) ** 2 + (1 / 2) ** 2) / 4)
    even, sure = found.calibration
    assert (even.judgements, even.predicted, even.observed) == (1, 0.5, 0.5)
    assert (sure.judgements, sure.observed) == (3, pytest.approx(2 / 3))
    assert sure.predicted == pytest.approx(0.75)
    assert found.calibration_error == pytest.approx((0 + 3 * (3 / 4 - 2 / 3)) / 4)


def test_the_second_answer_may_win() -> None:
    assert reward_accuracy([judgement(-2.0, False), judgement(2.0, True)]).overall.accuracy == 1.0
    assert reward_accuracy([judgement(2.0, False), judgement(-2.0, True)]).overall.accuracy == 0.0
    assert reward_accuracy([judgement(0.0, False), judgement(0.0, True)]).overall.accuracy == 0.0


def test_the_interval_is_wilsons_and_several_judgements_of_a_prompt_count_less() -> None:
    apart = [judgement(1.0 if i < 8 else -1.0, prompt=f"p{i}") for i in range(10)]
    found = reward_accuracy(apart).overall
    assert (found.low, found.high) == pytest.approx((0.4901625, 0.9433178), abs=1e-6)  # Wilson (1927), 8 of 10
    together = [judgement(1.0 if i < 8 else -1.0, prompt=f"p{i // 2}") for i in range(10)]
    clustered = reward_accuracy(together).overall
    assert clustered.low < found.low and clustered.high > found.high


def test_each_rater_and_version_has_its_own_accuracy() -> None:
    votes = [
        judgement(1.0, True, rater="ann", guideline=1),
        judgement(1.0, False, rater="bob", guideline=1),
        judgement(1.0, True, rater="bob", guideline=2),
        judgement(1.0, True, rater="bob"),
    ]
    found = reward_accuracy([judgement(1.0)], votes)
    assert {name: (each.judgements, each.accuracy) for name, each in found.by_rater.items()} == {
        "ann": (1, 1.0),
        "bob": (3, pytest.approx(2 / 3)),
    }
    assert {name: each.accuracy for name, each in found.by_guideline.items()} == {"1": 0.5, "2": 1.0, "none": 1.0}
    assert found.overall.judgements == 1


def in_category(category: str, *differences: float) -> list[ScoredJudgement]:
    return [replace(judgement(each, prompt=f"{category} {i}"), category=category) for i, each in enumerate(differences)]


def test_categories_count_alike_in_their_mean_and_by_rows_in_the_whole() -> None:
    outcomes = [*in_category("poems", 1.0, 1.0, -1.0, 0.0), *in_category("code", 2.0)]
    found = reward_accuracy(outcomes)
    assert {name: (each.judgements, each.accuracy, each.ties) for name, each in found.by_category.items()} == {
        "poems": (4, 0.5, 1),  # equal rewards prefer no answer
        "code": (1, 1.0, 0),
    }
    # Wilson (1927) for 2 of 4 and z = 1.959964: (2 + 1.92073)/(4 + 3.84146) ± ... = 0.5 ± 0.349995
    assert (found.by_category["poems"].low, found.by_category["poems"].high) == pytest.approx((0.15, 0.85), abs=1e-3)
    assert found.mean_accuracy == (0.5 + 1.0) / 2 and found.overall.accuracy == 3 / 5
    assert found.as_json()["mean_accuracy"] == 0.75 and found.by_section == {}


def test_rewardbenchs_score_is_the_mean_over_its_sections() -> None:
    # Chat 3/4: both subsets count by their rows. Safety 0. (3/4 + 0)/2, where the mean over three subsets is 4/9.
    outcomes = [
        *in_category("alpacaeval-easy", 1.0),
        *in_category("mt-bench-med", 1.0, 1.0, -1.0),
        *in_category("donotanswer", -1.0),
    ]
    found = reward_accuracy(outcomes)
    assert found.by_section == {"Chat": 0.75, "Safety": 0.0}
    assert found.mean_accuracy == 0.375


def test_without_categories_there_is_no_mean() -> None:
    found = reward_accuracy([judgement(1.0)])
    assert found.by_category == {} and found.mean_accuracy is None


def test_certain_predictions_stay_finite_and_are_json() -> None:
    found = reward_accuracy([judgement(1000.0), judgement(1000.0, False)])
    assert found.log_loss == pytest.approx(500.0)
    assert json.loads(json.dumps(found.as_json(), allow_nan=False))["overall"]["accuracy"] == 0.5


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_reward_that_is_no_number_is_an_error(bad: float) -> None:
    with pytest.raises(MachineryError, match="NaN or infinite.* 1 judgements"):
        reward_accuracy([judgement(1.0)], [judgement(bad)])
