"""Identity of items: a digest of what is compared."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

from rlhf.feedback.encoding import canonical, encode_prompt
from rlhf.feedback.records import Answer, Choice, Item, Purpose
from rlhf.records import Messages

ID_CHARACTERS = 32
"""128 bits of SHA-256 in hexadecimal."""


def item_id(prompt: Messages | str, answers: tuple[Answer, Answer], purpose: Purpose = Purpose.LABEL) -> str:
    """Digest of a comparison: the prompt, each answer's text and policy in their order, and the purpose.

    Equal texts of two policies are two items; seeds and sampling parameters do not count. The order of the answers
    counts, because votes are kept in the item's order.
    """
    content = [encode_prompt(prompt), [[answer.text, answer.policy] for answer in answers], purpose.value]
    return hashlib.sha256(canonical(content).encode()).hexdigest()[:ID_CHARACTERS]


def make_item(
    prompt: Messages | str,
    answers: tuple[Answer, Answer],
    *,
    purpose: Purpose = Purpose.LABEL,
    gold: Choice | None = None,
    explanation: str = "",
    round: str = "",
    source: str = "",
    group: str = "",
    extra: Mapping[str, object] | None = None,
) -> Item:
    """An item with its digest as id; the fields are those of ``Item``."""
    return Item(
        id=item_id(prompt, answers, purpose),
        prompt=prompt,
        answers=answers,
        purpose=purpose,
        gold=gold,
        explanation=explanation,
        round=round,
        source=source,
        group=group,
        extra=extra or {},
    )
