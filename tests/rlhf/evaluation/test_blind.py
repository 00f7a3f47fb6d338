from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from rlhf.evaluation.blind import blind

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
