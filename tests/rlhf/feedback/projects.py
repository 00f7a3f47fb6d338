"""Small feedback projects for tests."""

from __future__ import annotations

from pathlib import Path
from uuid import uuid4

from rlhf.feedback.assign import AssignedItem, next_item
from rlhf.feedback.items import make_item
from rlhf.feedback.records import Answer, Choice, Item, Purpose, Vote
from rlhf.feedback.settings import ProjectSettings
from rlhf.feedback.store import Store

NOW = 1_000.0
"""The time in a test, in seconds."""


def item(name: str, purpose: Purpose = Purpose.LABEL, gold: Choice | None = None) -> Item:
    """An item whose prompt is ``name``."""
    return make_item(name, (Answer(text="yes", policy="a"), Answer(text="no", policy="b")), purpose=purpose, gold=gold)


def labels(number: int) -> list[Item]:
    """Label items with the prompts "0", "1", ..."""
    return [item(str(index)) for index in range(number)]


def golds(number: int) -> list[Item]:
    """Gold items with the prompts "gold 0", ..."""
    return [item(f"gold {index}", Purpose.GOLD, Choice.FIRST_MUCH) for index in range(number)]


def calibrations(number: int) -> list[Item]:
    """Calibration items with the prompts "calibration 0", ..."""
    return [item(f"calibration {index}", Purpose.CALIBRATION, Choice.TIE) for index in range(number)]


def project(folder: Path, items: list[Item], *raters: str, **settings: object) -> Store:
    """A project without checks, unless ``settings`` ask for some, whose clock stands at ``NOW``."""
    plain = {"gold_fraction": 0.0, "repeat_fraction": 0.0, **settings}
    store = Store.create(folder / "project.db", ProjectSettings(**plain), seed=0, clock=lambda: NOW)
    store.add_items(items)
    for rater in raters:
        store.add_rater(rater)
    return store


def vote_on(assignment: AssignedItem, rater: str, choice: Choice = Choice.FIRST_MUCH, *, now: float = NOW) -> Vote:
    """The vote that answers an assignment."""
    return Vote(
        id=uuid4().hex,
        item=assignment.item.id,
        rater=rater,
        choice=choice,
        is_swapped=assignment.is_swapped,
        is_repeat=assignment.is_repeat,
        is_adjudication=assignment.is_adjudication,
        time=now,
    )


def label(store: Store, rater: str, choice: Choice = Choice.FIRST_MUCH, *, now: float = NOW) -> AssignedItem | None:
    """Let a rater judge the next item; None if there was none."""
    assignment = next_item(store, rater, now)
    if assignment is not None:
        assert store.add_vote(vote_on(assignment, rater, choice, now=now))
    return assignment


def label_all(store: Store, *raters: str) -> list[AssignedItem]:
    """Let raters judge in turn until there is no item for any of them."""
    found: list[AssignedItem] = []
    while new := [assignment for rater in raters if (assignment := label(store, rater)) is not None]:
        found += new
    return found
