from __future__ import annotations

from rlhf.data.hh import looks_like_hh, messages, rows_from_transcripts
from rlhf.data.read import RawRow
from rlhf.records import BadRow, RowLocation

CHOSEN = "\n\nHuman: Hi\n\nAssistant: Hello!\n\nHuman: Who are you?\n\nAssistant: A model.\n\nStill me."
REJECTED = "\n\nHuman: Hi\n\nAssistant: Hello!\n\nHuman: Who are you?\n\nAssistant:"


def raw(line: int, chosen: object, rejected: object) -> RawRow:
    return RawRow(RowLocation("hh.jsonl", line), {"chosen": chosen, "rejected": rejected})


def test_turns_become_messages() -> None:
    assert messages(CHOSEN) == [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello!"},
        {"role": "user", "content": "Who are you?"},
        {"role": "assistant", "content": "A model.\n\nStill me."},
    ]


def test_a_name_inside_a_turn_begins_no_turn() -> None:
    assert messages("\n\nHuman: say Human: twice\nAssistant: no") == [
        {"role": "user", "content": "say Human: twice\nAssistant: no"}
    ]


def test_transcripts_are_recognised() -> None:
    assert looks_like_hh({"chosen": CHOSEN, "rejected": REJECTED})
    assert looks_like_hh({"chosen": CHOSEN.lstrip(), "rejected": REJECTED})
    assert not looks_like_hh({"chosen": CHOSEN, "rejected": "plain"})
    assert not looks_like_hh({"chosen": CHOSEN})
    assert not looks_like_hh({"chosen": "\n\nHuman: unanswered", "rejected": CHOSEN})


def test_rows_that_are_no_transcripts_and_repeated_rows_are_bad() -> None:
    already_bad = BadRow(RowLocation("hh.jsonl", 4), "not JSON")
    rows = [
        raw(1, CHOSEN, REJECTED),
        raw(2, CHOSEN, None),
        raw(3, CHOSEN, REJECTED),
        already_bad,
        raw(5, REJECTED, CHOSEN),
    ]
    good, no_text, repeated, kept_bad, reversed_vote = rows_from_transcripts(rows)
    assert good.columns == {"chosen": messages(CHOSEN), "rejected": messages(REJECTED)}
    assert no_text.category == "not a transcript" and no_text.source.line == 2
    assert repeated.reason == "duplicate: the same as hh.jsonl:1"
    assert kept_bad is already_bad
    assert isinstance(reversed_vote, RawRow)
