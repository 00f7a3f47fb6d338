"""Passages and questions of the examples."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from examples.finegrained.passages import convert
from examples.finegrained.passages import main as make_finegrained
from examples.travel.passages import facts_of, passages_of, questions_of
from examples.travel.world import Place, make_world
from rlhf.errors import UserError
from rlhf.retrieval.passages import load_passages, load_questions

ROW = {
    "question": "Who?",
    "gold": "Ann did.",
    "passages": [["Deeds", "Deeds\n\nAnn did it.", "Bob saw it."], ["Other", "Nothing."]],
}


def test_the_facts_of_a_place() -> None:
    place = Place(kind="inn", name="Amber Inn", city="Bresk", quarter="hill", price=65, opens=10, closes=21)
    assert facts_of(place) == {
        "quarter": ("The Amber Inn is in the hill quarter of Bresk.", "the hill quarter"),
        "price": ("The price of a night is 65 crowns.", "65 crowns"),
        "hours": ("It is open from 10 to 21.", "10 to 21"),
    }


def test_every_question_of_the_world_has_its_passage_and_a_quote_in_it() -> None:
    world = make_world(0)
    passages = {row["id"]: str(row["text"]) for row in passages_of(world)}
    questions = list(questions_of(world))
    assert (len(passages), len(questions)) == (53, 3600) and len({row["question"] for row in questions}) == 3600
    assert all(row["quote"] in passages[row["oracle"]] and row["answer"] in row["quote"] for row in questions)


def test_finegrained_rows_become_passages_once_and_questions(tmp_path: Path) -> None:
    other = {**ROW, "question": "When?", "passages": [["Other", "Nothing."]]}
    (tmp_path / "feedback.json").write_bytes(b"\xef\xbb\xbf" + json.dumps([ROW, other]).encode())
    assert make_finegrained([str(tmp_path / "feedback.json"), "--out", str(tmp_path)]) == 0
    passages = load_passages(str(tmp_path / "passages.jsonl")).rows
    shown = [(passage.title, passage.text, passage.document) for passage in passages]
    assert shown == [("Deeds", "Ann did it.\nBob saw it.", "Deeds"), ("Other", "Nothing.", "Other")]
    first, second = load_questions(str(tmp_path / "questions.jsonl")).rows
    assert first.oracles == tuple(passage.id for passage in passages) and second.oracles == first.oracles[1:]


@pytest.mark.parametrize("name", ["question", "gold", "passages"])
def test_another_file_is_refused(name: str) -> None:
    with pytest.raises(UserError, match=f"no {name}"):
        convert([{key: value for key, value in ROW.items() if key != name}])
