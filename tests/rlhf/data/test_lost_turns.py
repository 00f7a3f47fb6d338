"""Turns that a chat template omits are found, whatever else its text contains."""

from __future__ import annotations

import pytest

from rlhf.data.template import Template, Turn
from tests.rlhf.data.templates import CHATML

LONG = "What does a night at the Amber Inn cost?"
YES, LONG_YES = "Yes", "Yes, a night there costs 65 crowns."


def turns(*contents: str) -> list[Turn]:
    return [{"role": ("user", "assistant")[i % 2], "content": content} for i, content in enumerate(contents)]


def without(left_out: int, given: list[Turn]) -> str:
    return "\n".join(f"{turn['role']}: {turn['content']}" for i, turn in enumerate(given) if i != left_out)


@pytest.mark.parametrize(
    ("contents", "left_out"),
    [
        ((LONG, LONG_YES), 0),
        ((YES, LONG_YES, LONG), 0),  # "Yes" stands in the answer by chance
        (("ant", LONG_YES), 0),  # so it does in "assistant"
        ((LONG, LONG_YES, LONG), 2),  # the same text is written once
        ((LONG, LONG_YES, LONG), 0),
        ((YES, YES, YES), 1),
    ],
)
def test_a_turn_that_is_left_out_is_found(contents: tuple[str, ...], left_out: int) -> None:
    given = turns(*contents)
    lost = Template(CHATML.tokenizer()).lost(given, lambda form: without(left_out, form), without(left_out, given))
    assert lost == [given[left_out]]


@pytest.mark.parametrize(
    "contents", [(LONG, LONG_YES, LONG), (YES, YES), (LONG, f"<think>hm</think>{LONG_YES}"), ("",)]
)
def test_where_all_are_written_none_is_lost(contents: tuple[str, ...]) -> None:
    def write(form: list[Turn]) -> str:
        return "\n".join(turn["content"].rpartition("</think>")[2] for turn in form)

    given = turns(*contents)
    assert Template(CHATML.tokenizer()).lost(given, write, write(given)) == []


def test_long_turns_are_looked_for_in_the_text_alone() -> None:
    """Rendering every row once more would cost time."""

    def write_again(form: list[Turn]) -> str:
        raise AssertionError("rendered once more")

    given = turns(LONG, LONG_YES)
    assert Template(CHATML.tokenizer()).lost(given, write_again, without(-1, given)) == []
