"""The final comparison is blind and complete and has the right sign."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from rlhf.evaluation.comparison import blind, compare_answers, write_answers
from rlhf.evaluation.scorers import load_scorer
from rlhf.storage.jsonl import read_lines

PROMPTS = [f"prompt {i}" for i in range(200)]
BEFORE = [f"old {i}" for i in range(200)]
AFTER = [f"new {i}" for i in range(200)]


def test_sides_are_drawn_evenly_and_by_the_seed() -> None:
    sheet = blind(PROMPTS, BEFORE, AFTER, seed=1)
    assert 70 < sum(sheet.after_is_a) < 130
    assert sheet == blind(PROMPTS, BEFORE, AFTER, seed=1)
    assert sheet.after_is_a != blind(PROMPTS, BEFORE, AFTER, seed=2).after_is_a


def test_every_answer_keeps_its_prompt() -> None:
    for i, pair in enumerate(blind(PROMPTS, BEFORE, AFTER, seed=1).pairs):
        assert (pair.id, pair.prompt) == (i, f"prompt {i}")
        assert {pair.a, pair.b} == {f"old {i}", f"new {i}"}


def test_unblinding_gives_the_scores_back_to_their_models() -> None:
    sheet = blind(PROMPTS, BEFORE, AFTER, seed=1)
    score = {"old": 0.25, "new": 0.75}
    a, b = ([score[text.split()[0]] for text in side] for side in zip(*((p.a, p.b) for p in sheet.pairs), strict=True))
    before, after = sheet.unblind(a, b)
    np.testing.assert_array_equal(before, np.full(200, 0.25))
    np.testing.assert_array_equal(after, np.full(200, 0.75))


def test_the_judges_file_does_not_hold_the_key(tmp_path: Path) -> None:
    blind(["¿dónde?"], ["old"], ["new"], seed=1).write(tmp_path)
    (row,) = (json.loads(line) for line in (tmp_path / "comparisons.jsonl").read_text(encoding="utf-8").splitlines())
    (key,) = (json.loads(line) for line in (tmp_path / "comparisons.key.jsonl").read_text().splitlines())
    assert sorted(row) == ["a", "b", "id", "prompt"]
    assert row["prompt"] == "¿dónde?"
    assert key["id"] == row["id"]
    assert row[key["after"]] == "new"


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
