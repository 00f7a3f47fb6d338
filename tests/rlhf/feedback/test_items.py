"""What makes two comparisons the same item."""

from __future__ import annotations

from hashlib import sha256

from rlhf.feedback.items import item_id, make_item
from rlhf.feedback.records import Answer, Purpose
from rlhf.records import Message

PAIR = (Answer(text="yes", policy="a"), Answer(text="no", policy="b"))


def test_the_id_is_the_digest_of_a_text_that_can_be_written_by_hand() -> None:
    text = b'["why?",[["yes","a"],["no","b"]],"label"]'
    assert item_id("why?", PAIR) == sha256(text).hexdigest()[:32]
    turns = b'[[{"content":"why?","role":"user"}],[["yes","a"],["no","b"]],"gold"]'
    assert item_id((Message("user", "why?"),), PAIR, Purpose.GOLD) == sha256(turns).hexdigest()[:32]


def test_texts_policies_order_and_purpose_decide() -> None:
    first, second = PAIR
    ids = {
        item_id("why?", PAIR),
        item_id("how?", PAIR),
        item_id("why?", (second, first)),
        item_id("why?", (Answer(text="yes", policy="c"), second)),
        item_id("why?", PAIR, Purpose.GOLD),
        item_id((Message("user", "why?"),), PAIR),
        item_id((Message("user", "why?", {"name": "Ann"}),), PAIR),
    }
    assert len(ids) == 7


def test_seeds_and_sampling_do_not_decide() -> None:
    sampled = (Answer(text="yes", policy="a", seed=3, sampling={"top_p": 0.9}), PAIR[1])
    assert item_id("why?", sampled) == item_id("why?", PAIR)


def test_an_item_is_made_with_its_id_and_its_fields() -> None:
    item = make_item("why?", PAIR, round="one", group="g", extra={"row": 3})
    assert item.id == item_id("why?", PAIR)
    assert (item.round, item.group, item.extra, item.gold) == ("one", "g", {"row": 3}, None)
