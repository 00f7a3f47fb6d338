"""Items whose better answer is known, from a file of comparisons: gold items, and calibration items."""

from __future__ import annotations

from dataclasses import replace

from rlhf.errors import UserError
from rlhf.feedback.formats.reading import read_feedback
from rlhf.feedback.items import item_id
from rlhf.feedback.records import Choice, Item, Purpose

EXPLANATION = "explanation"
"""Column with the reason why the chosen answer is better, which calibration shows after the vote."""


def read_known_items(path: str, purpose: Purpose) -> list[Item]:
    """Gold or calibration items from rows with ``prompt``, ``chosen``, ``rejected`` and perhaps ``explanation``.

    Raises:
        UserError: the file cannot be read, a row is unusable, or rows contradict each other.
    """
    feedback = read_feedback(path, "trl")
    if feedback.bad:
        bad = feedback.bad[0]
        raise UserError(f"{bad.source}: {bad.reason}", "a check must be right", "correct the row, or remove it")
    choices: dict[str, set[Choice]] = {}
    for vote in feedback.votes:
        choices.setdefault(vote.item, set()).add(vote.choice)
    return [_known(item, choices[item.id], purpose) for item in feedback.items]


def _known(item: Item, choices: set[Choice], purpose: Purpose) -> Item:
    if len(choices) > 1:
        raise UserError(f"{item.source}: another row prefers the other answer", "a check must be right", "keep one row")
    extra = {name: value for name, value in item.extra.items() if name != EXPLANATION}
    return replace(
        item,
        id=item_id(item.prompt, item.answers, purpose),
        purpose=purpose,
        gold=next(iter(choices)),
        explanation=str(item.extra.get(EXPLANATION, "")),
        extra=extra,
    )
