"""Reads requests and answers of the OpenAI API: prompt, text, id, and whether an answer is one at all."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from rlhf.records import Message, Messages

EVENT = b"data:{"
"""What the first event begins with, without spaces."""
DONE = b"data: [DONE]"
"""The last event of a complete stream."""
BESIDE = ("reasoning", "reasoning_content", "refusal")
"""Fields of a message that are its text if it has no other; vLLM has renamed the second to the first."""
MALFORMED = (ValueError, ArithmeticError, LookupError, TypeError, AttributeError, RecursionError)
"""What reading an answer of another shape raises."""


@dataclass(frozen=True, kw_only=True)
class CompletionAnswer:
    """A complete answer."""

    id: str
    texts: tuple[str, ...]
    """Text of every choice, by its index."""


def parse_answer(raw: bytes, is_stream: bool) -> CompletionAnswer:
    """Read an answer's bytes as the server sent them.

    Raises:
        ValueError: it is malformed, incomplete, or reports an error.
    """
    try:
        return _join_events(raw) if is_stream else _read_object(json.loads(raw))
    except MALFORMED as error:
        raise ValueError(f"malformed answer: {type(error).__name__}") from error


def check_beginning(raw: bytes) -> None:
    """Check the complete events of a stream's beginning.

    Raises:
        ValueError: an event is malformed or reports an error; or none is complete, and the first does not begin as one.
    """
    try:
        checked = [_pieces(event) for event in _events(raw[: raw.rfind(b"\n\n") + 2])]
        if not checked and not _begins_event(raw):
            raise ValueError("no event")
    except MALFORMED as error:
        raise ValueError(f"malformed event: {type(error).__name__}") from error


def is_complete(tail: bytes) -> bool:
    """Whether the last bytes of a stream are those of a complete one."""
    return tail.rstrip().endswith(DONE)


def answer_id(beginning: bytes) -> str:
    """The id in the first bytes of an answer, found without parsing the answer; empty if there is none."""
    _, found, rest = beginning[:4096].partition(b'"id"')
    quoted = rest.split(b'"', 2)
    return quoted[1].decode("utf-8", "replace") if found and len(quoted) == 3 and not quoted[0].strip(b": ") else ""


def prompt_of(body: Mapping[str, Any]) -> Messages | str:
    """The prompt of a request.

    Raises:
        ValueError: it is no text: several prompts, token ids, or turns with other content than text.
    """
    if "messages" not in body:
        if not isinstance(prompt := body.get("prompt"), str):
            raise ValueError("the prompt is not one text")
        return prompt
    return tuple(Message(str(turn["role"]), _content(turn.get("content"))) for turn in body["messages"])


def prompt_text(body: Mapping[str, Any]) -> str | None:
    """The prompt of a request as one text, for a scorer: its turns in order, each after its role; None if it has other
    content than text."""
    try:
        prompt = prompt_of(body)
    except MALFORMED:
        return None
    return prompt if isinstance(prompt, str) else "\n\n".join(f"{turn.role}: {turn.content}" for turn in prompt)


def _content(content: Any) -> str:
    if isinstance(content, str):
        return content
    if not isinstance(content, list) or not all(part["type"] == "text" for part in content):
        raise ValueError("a turn has other content than text")
    return "".join(str(part["text"]) for part in content)


def _read_object(answer: Any) -> CompletionAnswer:
    choices = sorted(answer["choices"], key=_index)
    if not choices or answer.get("error"):
        raise ValueError("no choices")
    texts = [_text(choice, "message") for choice in choices]
    return CompletionAnswer(id=str(answer["id"]), texts=tuple(said or beside for said, beside in texts))


def _text(choice: Mapping[str, Any], part: str) -> tuple[str, str]:
    """Text of a choice of either API, the fields of a tool call included; and the text beside it, such as the thoughts
    of a reasoning model."""
    holder = choice.get(part)
    if holder is None:
        return _optional_text(choice, "text"), ""
    if not isinstance(holder, Mapping):
        raise ValueError("a choice without a message")
    called = _tool_calls(holder.get("tool_calls") or [])
    beside = next(filter(None, (_optional_text(holder, name) for name in BESIDE)), "")
    return _optional_text(holder, "content") + called, beside


def _tool_calls(calls: Any) -> str:
    if not isinstance(calls, list) or not all(isinstance(call, Mapping) for call in calls):
        raise ValueError("tool calls that are none")
    return json.dumps(calls) if calls else ""


def _index(choice: Mapping[str, Any]) -> int:
    index = choice.get("index", 0)
    if type(index) is not int:
        raise ValueError("an index that is none")
    return index


def _optional_text(holder: Mapping[str, Any], name: str) -> str:
    text = holder.get(name)
    if not isinstance(text, str | None):
        raise ValueError(f"{name} is no text")
    return text or ""


def _join_events(raw: bytes) -> CompletionAnswer:
    if not is_complete(raw[-64:]):
        raise ValueError("the stream has no end")
    found: dict[int, tuple[list[str], list[str]]] = {}
    id = ""
    for event in _events(raw):
        id = id or str(event["id"])
        for index, said, beside in _pieces(event):
            of_choice = found.setdefault(index, ([], []))
            of_choice[0].append(said)
            of_choice[1].append(beside)
    if not found:
        raise ValueError("no choices")
    return CompletionAnswer(
        id=id, texts=tuple("".join(said) or "".join(beside) for _, (said, beside) in sorted(found.items()))
    )


def _pieces(event: Any) -> list[tuple[int, str, str]]:
    if event.get("error"):
        raise ValueError("the stream reports an error")
    return [(_index(choice), *_text(choice, "delta")) for choice in event["choices"]]


def _begins_event(raw: bytes) -> bool:
    head = raw[:100].replace(b" ", b"").lstrip()[: len(EVENT)]
    return head.startswith((b":", b"event:")) or EVENT.startswith(head)


def _events(raw: bytes) -> Iterator[Any]:
    for line in raw.replace(b"\r\n", b"\n").split(b"\n"):
        if line.startswith(b"data:") and (data := line[5:].strip()) != b"[DONE]":
            yield json.loads(data)
