from __future__ import annotations

import json
from pathlib import Path

import pytest

from rlhf.errors import UserError
from rlhf.feedback.known_items import read_known_items
from rlhf.feedback.records import Choice, Purpose
from rlhf.feedback.settings import Disagreement, parse_settings
from rlhf.feedback.store import Store


def write(path: Path, *rows: dict[str, str]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.mark.parametrize("purpose", [Purpose.GOLD, Purpose.CALIBRATION])
def test_the_chosen_answer_is_the_known_choice_whatever_their_order(purpose: Purpose, tmp_path: Path) -> None:
    rows = [
        {"prompt": "2 + 2?", "chosen": "4", "rejected": "5", "explanation": "a sum", "topic": "maths"},
        {"prompt": "2 + 3?", "chosen": "5", "rejected": "4"},
    ]
    items = read_known_items(write(tmp_path / "gold.jsonl", *rows), purpose)
    for item, right in zip(items, ("4", "5"), strict=True):
        known = {Choice.FIRST_SLIGHTLY: 0, Choice.SECOND_SLIGHTLY: 1}[item.gold or Choice.TIE]
        assert item.answers[known].text == right and item.purpose is purpose
    assert [item.explanation for item in items] == ["a sum", ""]
    assert dict(items[0].extra) == {"topic": "maths"}
    with Store.create(tmp_path / "votes.db") as store:
        assert store.add_items(items) == 2 and store.add_items(items) == 0


def test_rows_that_contradict_each_other_are_refused(tmp_path: Path) -> None:
    rows = [{"prompt": "p", "chosen": "a", "rejected": "b"}, {"prompt": "p", "chosen": "b", "rejected": "a"}]
    with pytest.raises(UserError, match="another row prefers the other answer"):
        read_known_items(write(tmp_path / "gold.jsonl", *rows), Purpose.GOLD)


def test_a_row_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    rows = [{"prompt": "p", "chosen": "a", "rejected": "b"}, {"prompt": "q", "chosen": "a", "rejected": "a"}]
    with pytest.raises(UserError, match="gold.jsonl:2"):
        read_known_items(write(tmp_path / "gold.jsonl", *rows), Purpose.GOLD)


def test_settings_have_types() -> None:
    found = parse_settings(
        ["overlap=2", "gold_fraction=0", "lease_seconds=60", "reasons=[a, 1]", "disagreement_to_adjudicate=never"]
    )
    assert found == {
        "overlap": 2,
        "gold_fraction": 0.0,
        "lease_seconds": 60.0,
        "reasons": ("a", "1"),
        "disagreement_to_adjudicate": Disagreement.NEVER,
    }


@pytest.mark.parametrize("word", ["overlap", "overlapp=2", "overlap=two", "overlap=2.5", "overlap=true", "reasons=a",
                                  "disagreement_to_adjudicate=sometimes", "gold_fraction=[", "overlap="])  # fmt: skip
def test_a_setting_that_cannot_be_understood_is_refused(word: str) -> None:
    with pytest.raises(UserError):
        parse_settings([word])
