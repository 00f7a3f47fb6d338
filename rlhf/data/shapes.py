"""Recognises values by their shape: turns of a conversation, JSON text of turns, or a list of alternating texts."""

from __future__ import annotations

import json
import re

SPEAKERS = {
    **dict.fromkeys(("user", "human", "prompter"), "user"),
    **dict.fromkeys(("assistant", "model", "ai", "gpt", "bot", "chatgpt"), "assistant"),
    **{name: name for name in ("system", "developer", "tool", "observation", "function", "ipython", "environment")},
}
"""Role in lower case → its name here; other roles are kept. ``ChatFormat`` knows which of these a template names
differently."""
CALLS = ("function_call", "tool_call")
"""Roles of turns whose text is a call by the assistant, in ShareGPT files."""

_A_TURN = ({"role", "content"}, {"role", "tool_calls"}, {"from", "value"})
"""Sets of fields, of which every turn has at least one."""
_NAMES_A_SPEAKER = re.compile(r"""(['"])(role|from)\1\s*:""")
_BEGINS_AS_TURNS = re.compile(
    r"""\s*(\[\s*)?\{(\s*(['"])(role|content|from|value)\3\s*:|[^{}\[\]]*(['"])(role|from)\5\s*:)"""
)
_A_SPEAKER = re.compile(rf"""(['"])(role|from)\1\s*:\s*(['"])({"|".join([*SPEAKERS, *CALLS])})\3""", re.IGNORECASE)
_LISTED_BY_PYTHON = re.compile(r"""\s*\[\s*(['"]).*\1\s*\]\s*""", re.DOTALL)


def are_turns(value: object) -> bool:
    """Whether a value is a turn or a list of turns, regardless of the contents."""
    turns = value if isinstance(value, list) else [value]
    return bool(turns) and all(
        isinstance(turn, dict) and any(names <= turn.keys() for names in _A_TURN) for turn in turns
    )


def turns_in(text: str) -> list[object] | dict[str, object] | None:
    """Parse a text that holds one or more turns as JSON, with at least one known speaker; None for other texts."""
    if not text.lstrip().startswith(("[", "{")) or not _NAMES_A_SPEAKER.search(text):
        return None
    parsed = _parse_json(text)
    if not isinstance(parsed, list | dict) or not are_turns(parsed):
        return None
    turns = parsed if isinstance(parsed, list) else [parsed]
    return parsed if any(_is_known_speaker(turn.get("role", turn.get("from"))) for turn in turns) else None


def are_broken_turns(text: str) -> bool:
    """Whether a text begins like turns and is no JSON: Python syntax, or cut off."""
    looks_so = _BEGINS_AS_TURNS.match(text) and _A_SPEAKER.search(text)
    return looks_so is not None and _parse_json(text) is None


def is_conversation(value: object) -> bool:
    """Whether a value is a list of turns, or JSON text of one."""
    turns = turns_in(value) if isinstance(value, str) else value
    return isinstance(turns, list) and are_turns(turns)


def texts_in(value: object) -> list[str | None] | None:
    """The texts of a list, or of JSON text of one; None for other values."""
    texts = _parse_json(value) if isinstance(value, str) and value.lstrip().startswith("[") else value
    if not isinstance(texts, list) or not all(text is None or isinstance(text, str) for text in texts):
        return None
    return texts


def are_broken_texts(value: object) -> bool:
    """Whether a value is a list of texts in Python syntax, which is no JSON."""
    return isinstance(value, str) and _LISTED_BY_PYTHON.fullmatch(value) is not None and _parse_json(value) is None


def _is_known_speaker(speaker: object) -> bool:
    return isinstance(speaker, str) and speaker.strip().lower() in (*SPEAKERS, *CALLS)


def _parse_json(text: str) -> object:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None
