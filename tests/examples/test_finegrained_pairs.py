from __future__ import annotations

import json
from pathlib import Path

import pytest

from examples.finegrained.pairs import main, pairs_of
from rlhf.config.schema import DataConfig
from rlhf.data.formats import load_preferences
from rlhf.errors import UserError

ROW = {
    "question": "Who?",
    "passages": [["Title", "One.", "Two."], ["Other"]],
    **{f"prediction {i}": f"answer {i}" for i in range(1, 5)},
    "preference": [1, 2, 0, 1, 2, 0],
}


def test_six_pairs_in_the_order_of_the_judgements() -> None:
    pairs = list(pairs_of(ROW, passages=0))
    assert [(pair["answer_1"][-1], pair["answer_2"][-1], pair["label"]) for pair in pairs] == [
        ("1", "2", 1),
        ("1", "3", 2),
        ("1", "4", 0),
        ("2", "3", 1),
        ("2", "4", 2),
        ("3", "4", 0),
    ]
    assert {pair["prompt"] for pair in pairs} == {"Who?\n"}
    assert next(pairs_of(ROW, passages=1))["prompt"] == "Title One. Two.\n\nWho?\n"


def test_the_documented_command_gives_preferences(tmp_path: Path) -> None:
    (tmp_path / "feedback.json").write_bytes(b"\xef\xbb\xbf" + json.dumps([ROW]).encode())
    main([str(tmp_path / "feedback.json"), "--out", str(tmp_path / "pairs.jsonl")])
    columns = {"chosen": "answer_1", "rejected": "answer_2", "label": "label"}
    loaded = load_preferences(DataConfig(path=str(tmp_path / "pairs.jsonl"), columns=columns))
    better = [("answer 1", "answer 2"), ("answer 3", "answer 1"), ("answer 2", "answer 3"), ("answer 4", "answer 2")]
    assert [(row.chosen, row.rejected) for row in loaded.rows] == better
    assert [bad.reason for bad in loaded.bad] == ["tie", "tie"]


def test_another_file_is_refused() -> None:
    with pytest.raises(UserError, match="6 judgements"):
        list(pairs_of({**ROW, "preference": [1]}, 0))
