"""What a value is by its shape: turns of a conversation, JSON text of some, or a list of what was said in turn."""

from __future__ import annotations

import json
import re

SPEAKERS = {
    **dict.fromkeys(("user", "human", "prompter"), "user"),
    **dict.fromkeys(("assistant", "model", "ai", "gpt", "bot", "chatgpt"), "assistant"),
    **{name: name for name in ("system", "developer", "tool", "observation", "function", "ipython", "environment")},
}
"""Roles in small letters → their names here; others stay as they are. ``ChatFormat`` knows which of these a template
has another name for."""
CALLS = ("function_call", "tool_call")
"""Roles of turns whose text is a call of the assistant's, in ShareGPT's files."""

_A_TURN = ({"role", "content"}, {"role", "tool_calls"}, {"from", "value"})
"""Fields of which every turn has one of these sets."""
_NAMES_A_SPEAKER = re.compile(r"""(['"])(role|from)\1\s*:""")
_BEGINS_AS_TURNS = re.compile(
    r"""\s*(\[\s*)?\{(\s*(['"])(role|content|from|value)\3\s*:|[^{}\[\]]*(['"])(role|from)\5\s*:)"""
)
_A_SPEAKER = re.compile(rf"""(['"])(role|from)\1\s*:\s*(['"])({"|".join([*SPEAKERS, *CALLS])})\3""", re.IGNORECASE)
_LISTED_BY_PYTHON = re.compile(r"""\s*\[\s*(['"]).*\1\s*\]\s*""", re.DOTALL)


def are_turns(value: object) -> bool:
    """Whether a value is a turn or a list of turns; what they hold is another question."""
    turns = value if isinstance(value, list) else [value]
    return bool(turns) and all(
        isinstance(turn, dict) and any(names <= turn.keys() for names in _A_TURN) for turn in turns
    )


def turns_in(text: str) -> list[object] | dict[str, object] | None:
    """The turn or the turns that a text holds as JSON, a speaker of whom is known; None where it is another text."""
    if not text.lstrip().startswith(("[", "{")) or not _NAMES_A_SPEAKER.search(text):
        return None
    parsed = _parsed(text)
    if not isinstance(parsed, list | dict) or not are_turns(parsed):
        return None
    turns = parsed if isinstance(parsed, list) else [parsed]
    return parsed if any(_is_known(turn.get("role", turn.get("from"))) for turn in turns) else None


def are_broken_turns(text: str) -> bool:
    """Whether a text is turns by its beginning, and no JSON: as Python writes them, or cut off."""
    looks_so = _BEGINS_AS_TURNS.match(text) and _A_SPEAKER.search(text)
    return looks_so is not None and _parsed(text) is None


def is_conversation(value: object) -> bool:
    """Whether a value is a list of turns, or JSON text of one."""
    turns = turns_in(value) if isinstance(value, str) else value
    return isinstance(turns, list) and are_turns(turns)


def texts_in(value: object) -> list[str | None] | None:
    """What is said in a list of texts, or in JSON text of one; None where the value is something else."""
    texts = _parsed(value) if isinstance(value, str) and value.lstrip().startswith("[") else value
    if not isinstance(texts, list) or not all(text is None or isinstance(text, str) for text in texts):
        return None
    return texts


def are_broken_texts(value: object) -> bool:
    """Whether a value is a list of texts as Python writes it, which is no JSON."""
    return isinstance(value, str) and _LISTED_BY_PYTHON.fullmatch(value) is not None and _parsed(value) is None


def _is_known(speaker: object) -> bool:
    return isinstance(speaker, str) and speaker.strip().lower() in (*SPEAKERS, *CALLS)


def _parsed(text: str) -> object:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None
