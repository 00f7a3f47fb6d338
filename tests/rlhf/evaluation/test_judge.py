"""A judge with planted faults: position bias, failures, scores."""

from __future__ import annotations

import numpy as np
import pytest

from rlhf import http_retries
from rlhf.evaluation.chat_endpoint import ChatEndpoint
from rlhf.evaluation.judge import (
    Exhibit,
    PairJudgements,
    corrected_win_rate,
    judge_pairs,
    judge_scores,
    summarise_pairs,
)
from tests.rlhf.evaluation.judge_service import Rule, config_of, judging, pick, tagged


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_retries, "FIRST_WAIT", 0.01)


def run(rule: Rule, first: list[str], second: list[str], reference: str = "") -> tuple[PairJudgements, int]:
    shown = [Exhibit(prompt=f"question {i}", reference=reference) for i in range(len(first))]
    with judging(rule) as service:
        return judge_pairs(ChatEndpoint(config_of(service)), shown, first, second), len(service.asked)


def test_a_planted_position_bias_is_corrected() -> None:
    # In 30 of 100 questions the judge picks what is shown first; in the others the larger number, which is the first
    # arm's in 70 of 100. Both are crossed: 21 of the 30 and 49 of the 70 are the first arm's.
    def rule(prompt: str) -> object:
        if int(tagged(prompt, "question").split()[1]) % 10 < 3:
            return pick(True)
        return pick(int(tagged(prompt, "answer_a")) > int(tagged(prompt, "answer_b")))

    first = ["2" if i // 10 < 7 else "0" for i in range(100)]
    judged, calls = run(rule, first, ["1"] * 100)
    result = summarise_pairs(judged, np.arange(100), seed=0)
    assert calls == 200
    assert judged.first_shown_first.mean() == pytest.approx(0.79)  # what one order alone says
    assert result.win_rate.value == pytest.approx(0.64)
    assert result.corrected.value == pytest.approx(0.7)
    assert result.position_bias.value == pytest.approx(0.3)
    assert result.consistency.value == pytest.approx(0.7)


@pytest.mark.parametrize("favoured", ["first", "last"])
@pytest.mark.parametrize("wins", [0.3, 0.5, 0.7])
@pytest.mark.parametrize("bias", [0.0, 0.2, 0.4])
def test_a_random_position_bias_is_corrected_to_two_points(wins: float, bias: float, favoured: str) -> None:
    draw = np.random.default_rng(5)
    n = 10_000
    is_better, by_position = draw.random(n) < wins, draw.random((2, n)) < bias
    is_picked_if_biased = np.array([[1.0], [0.0]]) if favoured == "first" else np.array([[0.0], [1.0]])
    x, y = np.where(by_position, is_picked_if_biased, is_better)
    result = summarise_pairs(
        PairJudgements(first_shown_first=x, first_shown_last=y), np.arange(n), seed=0, resamples=20
    )
    assert result.corrected.value == pytest.approx(wins, abs=0.02)
    assert result.position_bias.value == pytest.approx(bias if favoured == "first" else -bias, abs=0.02)


def test_the_correction_by_hand() -> None:
    # 10 pairs: 3 by position, 7 judged, of which 5 are won: x sums to 3 + 5, y to 5.
    assert corrected_win_rate(np.array([10.0, 8.0, 5.0, 7.0])) == pytest.approx(5 / 7)
    # The last position is favoured: x and y change places.
    assert corrected_win_rate(np.array([10.0, 5.0, 8.0, 7.0])) == pytest.approx(5 / 7)
    assert np.isnan(corrected_win_rate(np.array([10.0, 10.0, 0.0, 0.0])))


def test_ties_and_order() -> None:
    def rule(prompt: str) -> object:
        a, b = (int(tagged(prompt, name)) for name in ("answer_a", "answer_b"))
        return {"reason": "", "winner": "tie"} if a // 10 == b // 10 else pick(a > b)

    judged, _ = run(rule, ["10", "30", "11"], ["20", "20", "12"])
    assert judged.values.tolist() == [0.0, 1.0, 0.5]


def test_equal_answers_tie_without_a_question() -> None:
    judged, calls = run(lambda prompt: pick(True), ["same", "x"], ["same", "y"])
    assert (judged.values.tolist(), calls) == ([0.5, 0.5], 2)
    assert judged.first_shown_first.tolist() == [0.5, 1.0]


def test_a_failure_in_one_order_is_no_judgement() -> None:
    judged, _ = run(lambda prompt: 400 if tagged(prompt, "answer_a") == "1" else pick(True), ["1", "2"], ["3", "4"])
    assert np.isnan(judged.values).tolist() == [True, False]
    result = summarise_pairs(judged, np.arange(2), seed=0)
    assert (result.failed, result.win_rate.value) == (1, 0.5)


def test_a_reference_is_shown_only_if_there_is_one() -> None:
    seen: list[str] = []

    def rule(prompt: str) -> object:
        seen.append(prompt)
        return pick(True)

    run(rule, ["1"], ["2"], reference="the truth")
    assert tagged(seen[0], "correct_answer") == "the truth"
    seen.clear()
    run(rule, ["1"], ["2"])
    assert "correct_answer" not in seen[0]


def test_single_scores_and_one_out_of_range() -> None:
    def rule(prompt: str) -> object:
        return {"reason": "", "score": int(tagged(prompt, "answer"))}

    with judging(rule) as service:
        shown = [Exhibit(prompt=str(i)) for i in range(3)]
        scores = judge_scores(ChatEndpoint(config_of(service)), shown, ["1", "11", "10"])
    assert scores.tolist() == pytest.approx([1.0, float("nan"), 10.0], nan_ok=True)
