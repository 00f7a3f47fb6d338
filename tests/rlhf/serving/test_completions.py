"""Requests and answers of the OpenAI API, whole and streamed, sound and not."""

from __future__ import annotations

import json
from typing import Any

import pytest

from rlhf.records import Message
from rlhf.serving.completions import answer_id, check_beginning, is_complete, parse_answer, prompt_of, prompt_text


def chat(text: object = "Hello", **more: Any) -> bytes:
    return json.dumps({"id": "c-1", "choices": [{"index": 0, "message": {"content": text, **more}}]}).encode()


def stream(*texts: str, end: bool = True, index: int = 0) -> bytes:
    events = [{"id": "c-2", "choices": [{"index": index, "delta": {"content": text}}]} for text in texts]
    done = b"data: [DONE]\n\n" if end else b""
    return b"".join(b"data: " + json.dumps(event).encode() + b"\n\n" for event in events) + done


def test_both_apis_and_both_forms_give_id_and_texts() -> None:
    assert parse_answer(chat(), False).texts == ("Hello",)
    assert parse_answer(b'{"id": "x", "choices": [{"text": "Hi"}]}', False).texts == ("Hi",)
    found = parse_answer(stream("Hel", "lo"), True)
    assert (found.id, found.texts) == ("c-2", ("Hello",))
    two = stream("a", end=False) + stream("b", index=1)
    assert parse_answer(two, True).texts == ("a", "b")
    usage = b'data: {"id": "c", "choices": [], "usage": {}}\n\n'
    assert parse_answer(stream("a", end=False) + usage + b"data: [DONE]\n\n", True).texts == ("a",)
    assert "f" in parse_answer(chat(None, tool_calls=[{"function": "f"}]), False).texts[0]


@pytest.mark.parametrize(
    ("raw", "is_stream"),
    [
        (b"", False),
        (b"no json", False),
        (b"{}", False),
        (b"[]", False),
        (b'{"id": "x", "choices": []}', False),
        (b'{"id": "x", "choices": [{"message": 3}]}', False),
        (b"[" * 100_000, False),
        (chat(["Hello"]), False),
        (chat(5), False),
        (chat(None, tool_calls="f"), False),
        (chat(None, tool_calls=[["f"]]), False),
        (b'{"id": "x", "choices": [{"index": 1e999, "text": "a"}]}', False),
        (b'data: {"id": "x", "choices": [{"index": 1e999, "delta": {}}]}\n\ndata: [DONE]\n\n', True),
        (stream("a", end=False), True),
        (b"data: [DONE]\n\n", True),
        (b"data: {}\n\ndata: [DONE]\n\n", True),
        (b'data: {"id": "x", "error": {"message": "m"}}\n\ndata: [DONE]\n\n', True),
    ],
)
def test_what_is_no_answer_is_malformed(raw: bytes, is_stream: bool) -> None:
    with pytest.raises(ValueError, match="malformed"):
        parse_answer(raw, is_stream)


def test_thoughts_are_the_text_only_where_there_is_no_answer() -> None:
    for name in ("reasoning", "reasoning_content"):
        assert parse_answer(chat(None, **{name: "Hm."}), False).texts == ("Hm.",)
        assert parse_answer(chat("So.", **{name: "Hm."}), False).texts == ("So.",)
    deltas = [{"reasoning": "Hm"}, {"reasoning": "."}, {"content": "So"}, {"content": "."}]
    events = [{"id": "c", "choices": [{"index": 0, "delta": delta}]} for delta in deltas]
    lines = [b"data: " + json.dumps(event).encode() + b"\n\n" for event in events]
    assert parse_answer(b"".join([*lines, b"data: [DONE]\n\n"]), True).texts == ("So.",)
    assert parse_answer(b"".join([*lines[:2], b"data: [DONE]\n\n"]), True).texts == ("Hm.",)


def test_a_streams_beginning_is_checked_up_to_its_last_whole_event() -> None:
    check_beginning(stream("a", "b", end=False)[:-5])
    with pytest.raises(ValueError, match="malformed"):
        check_beginning(b"data: {nonsense}\n\ndata: ")
    check_beginning(b"data: {" + b" " * 100_000)
    check_beginning(b"dat")
    for rubbish in (b"data: " + b"x" * 100_000, b"x", b"<html>"):
        with pytest.raises(ValueError, match="malformed"):
            check_beginning(rubbish)


def test_the_id_is_found_without_parsing() -> None:
    assert (answer_id(chat()), answer_id(stream("a"))) == ("c-1", "c-2")
    assert (answer_id(b""), answer_id(b'{"id": 3}'), answer_id(b'{"id"')) == ("", "", "")
    assert is_complete(b"...\n\ndata: [DONE]\n\n")
    assert not is_complete(b"data: [DON")


def test_a_prompt_is_text_or_turns_of_text() -> None:
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": [{"type": "text", "text": "b"}]}]
    prompt = prompt_of({"messages": turns})
    assert prompt == (Message("user", "a"), Message("assistant", "b"))
    assert prompt_text({"messages": turns}) == "user: a\n\nassistant: b"
    assert prompt_text({"prompt": "Hi"}) == "Hi"
    for body in ({"prompt": ["a", "b"]}, {}, {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}):
        with pytest.raises((ValueError, LookupError)):
            prompt_of(body)
        assert prompt_text(body) is None
