"""Comparisons with their categories, from a file and from a project."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rlhf.config.schema import DataConfig
from rlhf.errors import UserError
from rlhf.feedback.judged_pairs import load_judged_pairs

ROWS = [
    {"prompt": "Add 1 and 2.", "chosen": "3", "rejected": "4", "subset": "math-prm", "id": 7},
    {"prompt": "Hi", "chosen": "Hello.", "rejected": "Hello.", "subset": "chat", "id": 8},  # equal answers: left out
    {"prompt": "Hi", "chosen": "Hello.", "rejected": "No.", "subset": "chat", "id": 9, "of": {"part": "easy"}},
]


def written(folder: Path, rows: list[dict[str, object]]) -> DataConfig:
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return DataConfig(preferences=str(path))


@pytest.mark.parametrize(
    ("column", "found"), [(None, [None, None]), ("subset", ["math-prm", "chat"]), ("id", ["7", "9"])]
)
def test_each_pair_has_the_category_of_its_row(tmp_path: Path, column: str | None, found: list[str | None]) -> None:
    pairs = load_judged_pairs(written(tmp_path, ROWS), column)
    assert [pair.category for pair in pairs] == found
    outcomes = [pair.outcome(1.0) for pair in pairs]
    assert [outcome and outcome.category for outcome in outcomes] == found


@pytest.mark.parametrize("row", [{}, {"subset": ""}, {"subset": None}, {"subset": ["a"]}])
def test_a_row_without_a_category_is_refused(tmp_path: Path, row: dict[str, object]) -> None:
    rows = [*ROWS, {"prompt": "Hi", "chosen": "Hello.", "rejected": "Go.", **row}]
    with pytest.raises(UserError, match=r"(?s)rows.jsonl:4 has no category in the column 'subset'.*it has prompt, "):
        load_judged_pairs(written(tmp_path, rows), "subset")


def test_a_category_may_be_nested(tmp_path: Path) -> None:
    assert [pair.category for pair in load_judged_pairs(written(tmp_path, ROWS[2:]), "of.part")] == ["easy"]
