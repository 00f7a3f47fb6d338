"""Rows of a batch: what is asked, and the one output row of each.

Two forms: ``prompt`` or ``messages`` with an optional ``id``, and that of OpenAI's batch files (``custom_id``, ``url``,
``body``). An output row has the form of its input row.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlhf.serving.completions import MALFORMED
from rlhf.storage.jsonl import json_safe

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"


@dataclass(frozen=True, kw_only=True)
class BatchRow:
    """One row of the input."""

    number: int
    """Counts from 1, without blank lines."""
    line: int
    """Line in the file, from 1."""
    id: str | int | None = None
    is_openai: bool = False
    path: str = ""
    """Path of the API that the row is for."""
    body: Mapping[str, Any] | None = None
    """The request; None if the row is malformed."""
    fault: str = ""
    """Why it is malformed."""


@dataclass(frozen=True, kw_only=True)
class BatchResult:
    """What becomes of a row: an answer, or the reason why there is none."""

    text: str = ""
    finish_reason: str = ""
    usage: Mapping[str, int] | None = None
    status: int = 200
    raw: Mapping[str, Any] | None = None
    """The service's answer, for rows of OpenAI's form."""
    failure: str = ""


def read_batch(path: Path, skip: int = 0) -> Iterator[BatchRow]:
    """Rows of a file, one at a time, without the first ``skip``; blank lines are no rows."""
    number = 0
    with path.open("rb") as file:
        for line, text in enumerate(file, start=1):
            if not text.strip():
                continue
            number += 1
            if number > skip:
                yield parse_row(text, number, line)


def parse_row(text: bytes, number: int, line: int) -> BatchRow:
    """Parse a line; what is wrong with it is in the row."""
    try:
        given = json.loads(text)
    except (ValueError, RecursionError):
        return BatchRow(number=number, line=line, fault="not JSON")
    if not isinstance(given, dict):
        return BatchRow(number=number, line=line, fault="no JSON object")
    if "body" in given:
        return _openai_row(given, number, line)
    id = given.get("id") if isinstance(given.get("id"), str | int) else None
    if is_conversation(given.get("messages")):
        body, path = {"messages": given["messages"]}, CHAT
    elif isinstance(given.get("prompt"), str):
        body, path = {"prompt": given["prompt"]}, TEXT
    elif is_conversation(given.get("prompt")):
        body, path = {"messages": given["prompt"]}, CHAT
    else:
        return BatchRow(number=number, line=line, id=id, fault="neither messages nor prompt")
    return BatchRow(number=number, line=line, id=id, path=path, body=body)


def is_conversation(value: object) -> bool:
    """Whether a value is a list of turns that have a role."""
    is_list = isinstance(value, list) and bool(value)
    return is_list and all(isinstance(turn, dict) and isinstance(turn.get("role"), str) for turn in value)  # type: ignore[attr-defined]


def _openai_row(given: Mapping[str, Any], number: int, line: int) -> BatchRow:
    id, path, body = given.get("custom_id"), given.get("url", CHAT), given["body"]
    named = id if isinstance(id, str) else None
    fault = ""
    if named is None:
        fault = "custom_id is no text"
    elif path not in (CHAT, TEXT):
        fault = f"url is neither {CHAT} nor {TEXT}"
    elif not isinstance(body, dict) or ("messages" if path == CHAT else "prompt") not in body:
        fault = "body is no request"
    elif body.get("stream"):
        fault = "body asks for a stream"
    return BatchRow(
        number=number, line=line, id=named, is_openai=True, path=path, body=None if fault else body, fault=fault
    )


def parse_completion(raw: bytes) -> BatchResult:
    """A service's answer as a result; a malformed one is a failure."""
    try:
        answer = json_safe(json.loads(raw))  # also shows that it is not too deep to be written
        choice = answer["choices"][0]
        text = choice["message"]["content"] if "message" in choice else choice["text"]
        if not isinstance(text, str | None):
            raise TypeError("the text is none")
        return BatchResult(
            text=text or "", finish_reason=str(choice.get("finish_reason") or ""), usage=answer.get("usage"), raw=answer
        )
    except MALFORMED as error:
        return BatchResult(failure=f"malformed answer: {type(error).__name__}")


def output_row(row: BatchRow, result: BatchResult) -> dict[str, Any]:
    """The one output row of a row."""
    if row.is_openai:
        return _openai_output(row, result)
    named = {"row": row.number, **({} if row.id is None else {"id": row.id})}
    if result.failure:
        return {**named, "response": None, "error": result.failure}
    used = {"usage": result.usage} if result.usage else {}
    return {**named, "response": result.text, "finish_reason": result.finish_reason, **used, "error": None}


def _openai_output(row: BatchRow, result: BatchResult) -> dict[str, Any]:
    named = {"id": f"batch_req_{row.number}", "custom_id": row.id}
    if result.failure:
        return {**named, "response": None, "error": {"code": "failed", "message": result.failure}}
    body = result.raw or {
        "choices": [
            {
                "index": 0,
                "finish_reason": result.finish_reason,
                **(
                    {"message": {"role": "assistant", "content": result.text}}
                    if row.path == CHAT
                    else {"text": result.text}
                ),
            }
        ]
    }
    return {**named, "response": {"status_code": result.status, "request_id": "", "body": body}, "error": None}


def failure_of(output: Mapping[str, Any]) -> str:
    """The reason in an output row; empty if the row has an answer."""
    error = output.get("error")
    return str(error["message"] if isinstance(error, Mapping) else error or "")
