"""The page's buttons: what each means for an item whose answers may be shown swapped, and its key."""

from __future__ import annotations

from collections.abc import Mapping

from rlhf.feedback.records import Choice

BUTTONS: Mapping[str, Choice] = {
    "a_much": Choice.FIRST_MUCH,
    "a_slightly": Choice.FIRST_SLIGHTLY,
    "tie": Choice.TIE,
    "b_slightly": Choice.SECOND_SLIGHTLY,
    "b_much": Choice.SECOND_MUCH,
    "both_bad": Choice.BOTH_BAD,
    "skip": Choice.SKIP,
}
"""Choices by the button's name, for answers that are shown in the item's order: A is the first."""
_NAMES = {choice: name for name, choice in BUTTONS.items()}

SCALE_KEYS = {"a_much": "1", "a_slightly": "2", "tie": "3", "b_slightly": "4", "b_much": "5"}
OTHER_KEYS = {"both_bad": "0", "skip": "s"}
REASON_KEYS = "qwertyiop"
"""Keys of the reasons, in their order; further reasons have none. The keys u, g, c and s have other uses."""


def choice_of(button: str, is_swapped: bool) -> Choice:
    """The choice, in the item's order, of a button that was pressed.

    Raises:
        ValueError: there is no such button.
    """
    if button not in BUTTONS:
        raise ValueError(f"there is no button {button!r}")
    choice = BUTTONS[button]
    return choice.swapped if is_swapped else choice


def button_of(choice: Choice, is_swapped: bool) -> str:
    """The button that gives a choice."""
    return _NAMES[choice.swapped if is_swapped else choice]


def reason_keys(reasons: tuple[str, ...]) -> list[tuple[str, str]]:
    """Each reason with its key, or with an empty text."""
    return [(reason, REASON_KEYS[place : place + 1]) for place, reason in enumerate(reasons)]
