"""Items, votes and thumbs as JSON objects and back, without loss."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from rlhf.feedback.records import Answer, Choice, Item, Purpose, Thumb, Vote
from rlhf.records import Message, Messages
from rlhf.storage.jsonl import json_safe


def canonical(value: Any) -> str:
    """JSON text that is equal for equal values: sorted keys, ASCII, no spaces."""
    return json.dumps(json_safe(value), sort_keys=True, separators=(",", ":"))


def encode_prompt(prompt: Messages | str) -> str | list[dict[str, Any]]:
    """A prompt as text, or as a list of turns; a turn's unusual properties are written only where it has them."""
    return prompt if isinstance(prompt, str) else [_encode_message(message) for message in prompt]


def decode_prompt(value: str | list[dict[str, Any]]) -> Messages | str:
    """The inverse of ``encode_prompt``."""
    return value if isinstance(value, str) else tuple(Message(**turn) for turn in value)


def _encode_message(message: Message) -> dict[str, Any]:
    turn: dict[str, Any] = {"role": message.role, "content": message.content}
    if message.fields:
        turn["fields"] = dict(message.fields)
    if not message.has_content:
        turn["has_content"] = False
    if not message.trained:
        turn["trained"] = False
    return turn


def encode_item(item: Item) -> dict[str, Any]:
    """An item as a JSON object with the fields of ``Item``."""
    return {
        "id": item.id,
        "prompt": encode_prompt(item.prompt),
        "answers": [_encode_answer(answer) for answer in item.answers],
        "purpose": item.purpose.value,
        "gold": item.gold.value if item.gold else None,
        "explanation": item.explanation,
        "round": item.round,
        "source": item.source,
        "group": item.group,
        "extra": json_safe(item.extra),
    }


def decode_item(row: Mapping[str, Any]) -> Item:
    """The inverse of ``encode_item``."""
    first, second = row["answers"]
    return Item(
        **{
            **row,
            "prompt": decode_prompt(row["prompt"]),
            "answers": (Answer(**first), Answer(**second)),
            "purpose": Purpose(row["purpose"]),
            "gold": Choice(row["gold"]) if row["gold"] else None,
        }
    )


def encode_vote(vote: Vote) -> dict[str, Any]:
    """A vote as a JSON object with the fields of ``Vote``."""
    return {**vars(vote), "choice": vote.choice.value, "reasons": list(vote.reasons)}


def decode_vote(row: Mapping[str, Any]) -> Vote:
    """The inverse of ``encode_vote``."""
    return Vote(**{**row, "choice": Choice(row["choice"]), "reasons": tuple(row["reasons"])})


def encode_thumb(thumb: Thumb) -> dict[str, Any]:
    """A thumb as a JSON object with the fields of ``Thumb``."""
    return {
        "id": thumb.id,
        "prompt": encode_prompt(thumb.prompt),
        "answer": _encode_answer(thumb.answer),
        "is_good": thumb.is_good,
        "comment": thumb.comment,
        "time": thumb.time,
    }


def decode_thumb(row: Mapping[str, Any]) -> Thumb:
    """The inverse of ``encode_thumb``."""
    return Thumb(**{**row, "prompt": decode_prompt(row["prompt"]), "answer": Answer(**row["answer"])})


def _encode_answer(answer: Answer) -> dict[str, Any]:
    return {
        "text": answer.text,
        "policy": answer.policy,
        "seed": answer.seed,
        "sampling": json_safe(answer.sampling),
    }
