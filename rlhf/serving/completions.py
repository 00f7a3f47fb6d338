"""Reads requests and answers of the OpenAI API: prompt, text, id, and whether an answer is one at all."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from rlhf.records import Message, Messages

DONE = b"data: [DONE]"
"""The last event of a complete stream."""
MALFORMED = (ValueError, LookupError, TypeError, AttributeError, RecursionError)
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
        ValueError: an event is malformed or reports an error.
    """
    try:
        for event in _events(raw[: raw.rfind(b"\n\n") + 2]):
            _pieces(event)
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
    choices = sorted(answer["choices"], key=lambda choice: choice.get("index", 0))
    if not choices or answer.get("error"):
        raise ValueError("no choices")
    return CompletionAnswer(id=str(answer["id"]), texts=tuple(_text(each, "message") for each in choices))


def _text(choice: Mapping[str, Any], part: str) -> str:
    """Text of a choice of either API; the fields of a tool call count as its text."""
    holder = choice.get(part)
    if holder is None:
        return str(choice.get("text") or "")
    if not isinstance(holder, Mapping):
        raise ValueError("a choice without a message")
    called = json.dumps(holder["tool_calls"]) if holder.get("tool_calls") else ""
    return str(holder.get("content") or holder.get("reasoning_content") or "") + called


def _join_events(raw: bytes) -> CompletionAnswer:
    if not is_complete(raw[-64:]):
        raise ValueError("the stream has no end")
    texts: dict[int, list[str]] = {}
    id = ""
    for event in _events(raw):
        id = id or str(event["id"])
        for index, text in _pieces(event):
            texts.setdefault(index, []).append(text)
    if not texts:
        raise ValueError("no choices")
    return CompletionAnswer(id=id, texts=tuple("".join(texts[index]) for index in sorted(texts)))


def _pieces(event: Any) -> list[tuple[int, str]]:
    if event.get("error"):
        raise ValueError("the stream reports an error")
    return [(int(choice.get("index", 0)), _text(choice, "delta")) for choice in event["choices"]]


def _events(raw: bytes) -> Iterator[Any]:
    for line in raw.replace(b"\r\n", b"\n").split(b"\n"):
        if line.startswith(b"data:") and (data := line[5:].strip()) != b"[DONE]":
            yield json.loads(data)
