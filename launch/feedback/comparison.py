"""The texts of a comparison as its page shows them: the prompt's turns, and the answers A and B."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from launch.feedback.markdown import to_html
from launch.feedback.texts import TEXTS, Language
from rlhf.feedback.records import Item


def comparison_texts(item: Item, is_swapped: bool, language: Language) -> dict[str, Any]:
    """The prompt and the answers A and B, as the page shows them."""
    first, second = (to_html(answer.text) for answer in item.answers)
    left, right = (second, first) if is_swapped else (first, second)
    return {"turns": _turns(item, language), "left": left, "right": right}


@dataclass(frozen=True, kw_only=True)
class ShownTurn:
    """A turn of a prompt as the page shows it."""

    role: str
    """In the visitor's language; empty for a prompt that is plain text."""
    kind: str
    """Class of the style sheet."""
    html: Markup


def _turns(item: Item, language: Language) -> list[ShownTurn]:
    if isinstance(item.prompt, str):
        return [ShownTurn(role="", kind="user", html=to_html(item.prompt))]
    return [_turn(turn.role, turn.content, language) for turn in item.prompt]


def _turn(role: str, content: str, language: Language) -> ShownTurn:
    text = TEXTS.get(f"role_{role}")
    name = text[language] if text else role
    return ShownTurn(role=name, kind="assistant" if role == "assistant" else "user", html=to_html(content))
