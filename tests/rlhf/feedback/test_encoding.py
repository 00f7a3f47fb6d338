"""Records survive JSON."""

from __future__ import annotations

import json
from dataclasses import replace

from rlhf.feedback.encoding import (
    canonical,
    decode_item,
    decode_thumb,
    decode_vote,
    encode_item,
    encode_thumb,
    encode_vote,
)
from rlhf.feedback.records import Answer, Choice, Item, Purpose, Thumb, Vote
from rlhf.records import Message

TURNS = (
    Message("system", "", {"name": "s"}, has_content=False),
    Message("user", "\ud800 \0 読む", trained=False),
)
ITEM = Item(
    id="i",
    prompt=TURNS,
    answers=(Answer(text="yes", policy="a", seed=3, sampling={"top_p": 0.5}), Answer(text="")),
    purpose=Purpose.CALIBRATION,
    gold=Choice.TIE,
    explanation="both",
    round="r",
    source="f:1",
    group="g",
    extra={"rows": [1, None, {"a": "b"}]},
)
VOTE = Vote(
    id="v",
    item="i",
    rater="ann",
    choice=Choice.BOTH_BAD,
    is_swapped=True,
    reasons=("clear",),
    comment="\ud800",
    seconds=1.25,
    guideline=2,
    time=3.5,
    is_repeat=True,
)


def test_an_item_survives_with_every_property_of_its_turns() -> None:
    again = decode_item(json.loads(canonical(encode_item(ITEM))))
    assert again == ITEM
    assert [(turn.has_content, turn.trained) for turn in again.prompt] == [(False, True), (True, False)]
    plain = replace(ITEM, prompt="text", purpose=Purpose.LABEL, gold=None)
    assert decode_item(json.loads(canonical(encode_item(plain)))) == plain


def test_votes_and_thumbs_survive() -> None:
    assert decode_vote(json.loads(canonical(encode_vote(VOTE)))) == VOTE
    thumb = Thumb(id="t", prompt=TURNS, answer=Answer(text="yes", policy="p"), is_good=False, comment="x", time=1.5)
    assert decode_thumb(json.loads(canonical(encode_thumb(thumb)))) == thumb


def test_equal_values_have_one_text() -> None:
    assert canonical({"b": (1, "é"), "a": float("nan")}) == '{"a":null,"b":[1,"\\u00e9"]}'
