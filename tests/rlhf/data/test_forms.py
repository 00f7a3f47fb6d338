"""The forms in which a template accepts a turn without content, and the arguments of a call."""

from __future__ import annotations

import json

import pytest

from rlhf.data.forms import form_of
from rlhf.data.template import Turn, Unusable


def call(arguments: object, content: str | None = "") -> Turn:
    function = {"name": "weather", "arguments": arguments}
    return {"role": "assistant", "content": content, "tool_calls": [{"type": "function", "function": function}]}


def arguments_of(turn: Turn) -> object:
    return turn["tool_calls"][0]["function"]["arguments"]


def takes_objects(turns: list[Turn]) -> str:
    return " ".join(json.dumps(dict(arguments_of(turn))) for turn in turns)


def takes_text(turns: list[Turn]) -> str:
    return " ".join(str(arguments_of(turn)) for turn in turns)


def takes_python(turns: list[Turn]) -> str:
    """A template that writes objects in Python syntax, and refuses text."""
    if any(isinstance(arguments_of(turn), str) for turn in turns):
        raise Unusable("text")
    return takes_text(turns)


@pytest.mark.parametrize(
    ("write", "expected"),
    [
        (takes_objects, {"city": "Bresk"}),
        (takes_text, '{"city": "Bresk"}'),
        (takes_python, {"city": "Bresk"}),
    ],
)
def test_arguments_have_the_form_that_the_template_writes(write, expected: object) -> None:
    given = call({"city": "Bresk"})
    assert form_of([given], write) == [call(expected)]
    assert given == call({"city": "Bresk"}), "what the row holds is not changed"


@pytest.mark.parametrize(
    ("write", "expected"),
    [
        (lambda turns: f"said: {turns[0]['content']}", ""),
        (lambda turns: f"said: {turns[0]['content'] or 'nothing'}", None),
        (lambda turns: "None of it" if turns[0]["content"] is None else "None, None", None),
    ],
)
def test_null_is_an_empty_text_where_the_template_writes_none(write, expected: str | None) -> None:
    turn = {"role": "assistant", "content": None}
    assert form_of([turn], write) == [{"role": "assistant", "content": expected}]


def test_turns_that_the_template_refuses_stay_as_they_are() -> None:
    def refuses(turns: list[Turn]) -> str:
        raise Unusable("no")

    turns = [call({"city": "Bresk"}, None)]
    assert form_of(turns, refuses) is turns
