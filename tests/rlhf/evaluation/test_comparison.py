"""The final comparison is blind and complete and has the right sign."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from rlhf.evaluation.comparison import compare_answers, write_answers
from rlhf.evaluation.scorers import load_scorer
from rlhf.storage.jsonl import read_lines


def test_the_longer_side_wins_whatever_side_it_is_shown_on(tmp_path: Path) -> None:
    judge = tmp_path / "judge.py"
    judge.write_text("def length(prompts, responses):\n    return [float(len(r)) for r in responses]\n")
    prompts = [f"p{i}" for i in range(40)]
    write_answers(tmp_path, prompts, ["no"] * 40, ["longer"] * 30 + ["no"] * 4 + ["n"] * 6)
    result = compare_answers(tmp_path, load_scorer(f"{judge}:length"), tmp_path / "sheets", seed=0)
    assert (result.win_rate.wins, result.win_rate.ties, result.win_rate.losses) == (30, 4, 6)
    assert result.win_rate.rate == 0.8
    assert result.before_scores.tolist() == [2.0] * 40
    assert np.isclose(result.after_scores.mean(), (30 * 6 + 4 * 2 + 6 * 1) / 40)
    sheet = read_lines(tmp_path / "sheets" / "comparisons.jsonl")
    assert [row["prompt"] for row in sheet] == prompts
    assert {row["a"] == "no" for row in sheet[:30]} == {True, False}, "the sides are not shuffled"


def test_a_prompt_that_is_asked_again_is_no_more_evidence(tmp_path: Path) -> None:
    judge = tmp_path / "judge.py"
    judge.write_text("def length(prompts, responses):\n    return [float(len(r)) for r in responses]\n")
    ends = []
    for repeats in (1, 4):
        prompts = [f"p{i}" for i in range(20)] * repeats
        write_answers(tmp_path, prompts, ["no"] * len(prompts), (["longer"] * 14 + ["n"] * 6) * repeats)
        result = compare_answers(tmp_path, load_scorer(f"{judge}:length"), tmp_path / "sheets", seed=0)
        ends.append((result.win_rate.low, result.win_rate.high, result.summary()["difference, 95% interval"]))
    (low, high, difference), (low_again, high_again, again) = ends
    assert low_again == pytest.approx(low, abs=0.02) and high_again == pytest.approx(high, abs=0.02)
    # 14 of +4 and 6 of −1: mean 2.5, s = 2.350812, 2.5 ± 2.093024 · s/√20, whether each is there once or four times
    assert difference == "+1.400 to +3.600" and again == difference
