"""Independent judgements of raters as arrays, and the count of votes that are none.

A judgement is a rater's vote on an item, made alone: adjudications, repeats, skips and votes of suspended raters
are no judgements, and only items of the wanted purpose have any. Statistics of this
package count only these, unless they state otherwise.

Shapes: n judgements of U items by R raters.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property

import numpy as np

from rlhf.feedback.records import Choice, Item, Purpose, Vote
from rlhf.types import Int64


class Category(StrEnum):
    """A choice without its strength."""

    FIRST = "first"
    TIE = "tie"
    SECOND = "second"
    BOTH_BAD = "both_bad"


CATEGORIES = tuple(Category)
"""In arrays a category is its index in this tuple."""
FIRST, TIE, SECOND, BOTH_BAD = range(4)


def category(choice: Choice) -> int | None:
    """Index of a choice's category in ``CATEGORIES``; None for a skip."""
    if choice is Choice.BOTH_BAD:
        return BOTH_BAD
    strength = choice.strength
    return None if strength is None else TIE - (strength > 0) + (strength < 0)


@dataclass(frozen=True, kw_only=True)
class Judgements:
    """Judgements as parallel arrays (n,), and the votes that are left out."""

    items: tuple[Item, ...]
    """The U items that have a judgement."""
    raters: tuple[str, ...]
    """The R raters that have one, sorted."""
    item: Int64
    """Index into ``items``."""
    rater: Int64
    """Index into ``raters``."""
    category: Int64
    """Index into ``CATEGORIES``."""
    strength: Int64
    """2, 1, 0, −1, −2: how much the first answer is preferred."""
    votes: tuple[Vote, ...]
    """The n votes."""
    left_out: Mapping[str, int]
    """Reason → number of votes that are no judgements."""

    def counts(self, categories: int = len(CATEGORIES)) -> Int64:
        """(U, categories) judgements of each item in each category; both bad joins the ties if there are only 3."""
        found = np.where(self.category < categories, self.category, TIE)
        cells = np.bincount(self.item * categories + found, minlength=len(self.items) * categories)
        return cells.reshape(len(self.items), categories)

    @cached_property
    def clusters(self) -> Int64:
        """(U,) number of each item's cluster."""
        return cluster_numbers(self.items)

    def select(self, is_kept: Iterable[bool]) -> Judgements:
        """Those judgements, over their own items and raters."""
        kept = [vote for vote, is_in in zip(self.votes, is_kept, strict=True) if is_in]
        return _as_arrays({item.id: item for item in self.items}, kept, {})


def independent(items: Sequence[Item], votes: Iterable[Vote], purpose: Purpose = Purpose.LABEL) -> Judgements:
    """The judgements among ``votes`` of the items of one purpose.

    If a rater has several votes on an item that are no repeats, the last one counts, as a correction of the others.
    """
    by_id = {item.id: item for item in items}
    left_out: Counter[str] = Counter()
    kept: dict[tuple[str, str], Vote] = {}
    for vote in votes:
        key, reason = (vote.item, vote.rater), _why_none(vote, by_id.get(vote.item), purpose)
        if not reason:
            reason = "replaced by a later vote" if key in kept else ""
            kept[key] = vote
        if reason:
            left_out[reason] += 1
    return _as_arrays(by_id, list(kept.values()), left_out)


def decisions(votes: Iterable[Vote]) -> list[Vote]:
    """Adjudications that decide: those of suspended adjudicators, and skips, do not."""
    return [v for v in votes if v.is_adjudication and not v.is_suspended and v.choice is not Choice.SKIP]


def _why_none(vote: Vote, item: Item | None, purpose: Purpose) -> str:
    """Why a vote is no judgement; empty if it is one."""
    reasons = {
        "unknown item": item is None,
        "other purpose": item is not None and item.purpose is not purpose,
        "adjudication": vote.is_adjudication,
        "repeat": vote.is_repeat,
        "suspended rater": vote.is_suspended,
        "skip": vote.choice is Choice.SKIP,
    }
    return next((reason for reason, applies in reasons.items() if applies), "")


def _as_arrays(by_id: Mapping[str, Item], votes: list[Vote], left_out: Mapping[str, int]) -> Judgements:
    used = tuple(dict.fromkeys(vote.item for vote in votes))
    raters = tuple(sorted({vote.rater for vote in votes}))
    item_of, rater_of = ({name: i for i, name in enumerate(names)} for names in (used, raters))
    return Judgements(
        items=tuple(by_id[name] for name in used),
        raters=raters,
        item=np.array([item_of[vote.item] for vote in votes], dtype=np.int64),
        rater=np.array([rater_of[vote.rater] for vote in votes], dtype=np.int64),
        category=np.array([category(vote.choice) for vote in votes], dtype=np.int64),
        strength=np.array([vote.choice.strength for vote in votes], dtype=np.int64),
        votes=tuple(votes),
        left_out=dict(left_out),
    )


def cluster_of(item: Item) -> Hashable:
    """Items with the same value are correlated: they share a group or, without one, a prompt."""
    return item.group or item.prompt


def cluster_numbers(items: Sequence[Item]) -> Int64:
    """(len(items),) number of each item's cluster."""
    numbers: dict[Hashable, int] = {}
    return np.array([numbers.setdefault(cluster_of(item), len(numbers)) for item in items], dtype=np.int64)
