"""Quality of raters in numbers: gold accuracy, self-consistency, agreement, biases and speed.

A rater's own numbers count all the rater's votes, also if the rater is suspended; the others that a rater is compared
with are raters that are not. ``flags.py`` says which numbers deserve a moderator's look.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import bdtr

from rlhf.evaluation.intervals import share_interval
from rlhf.feedback.judgements import FIRST, SECOND, Judgements, category, independent
from rlhf.feedback.records import Choice, Item, Purpose, Vote
from rlhf.storage.jsonl import json_safe
from rlhf.types import Bool, Int64


@dataclass(frozen=True, kw_only=True)
class Share:
    """A fraction of votes with its 95% Wilson interval, over the effective number of votes."""

    count: int
    n: int
    low: float
    high: float

    @property
    def value(self) -> float | None:
        """count/n; None without votes."""
        return self.count / self.n if self.n else None


def share(is_true: ArrayLike, clusters: ArrayLike | None = None) -> Share:
    """The fraction of true values in (n,), which are correlated within clusters if these are given."""
    values = np.asarray(is_true, dtype=np.bool_)
    low, high = share_interval(values, np.arange(len(values)) if clusters is None else clusters)
    return Share(count=int(values.sum()), n=len(values), low=low, high=high)


@dataclass(frozen=True, kw_only=True)
class RaterQuality:
    """One rater's numbers. Votes are those on label items unless said otherwise."""

    rater: str
    votes: int
    """On label and gold items, without skips and repeats."""
    gold: Share
    """Gold items with the known outcome."""
    consistency: Share
    """Repeats with the outcome of the first vote."""
    agreement: Share
    """Votes with the outcome that most of the item's other raters chose, where one outcome has most."""
    left: Share
    """Votes for the left answer, among votes for either one. Half is expected, as sides are drawn at random."""
    left_p: float | None
    """Two-sided p-value of the binomial test of ``left`` against ½; None if all votes were shown on the same sides."""
    longer: Share
    """Votes for the longer answer, among votes for either one of two answers that differ in length."""
    longer_others: Share
    """The same of the other raters' votes on the same items. Longer answers may be better: compare the two."""
    fast: Share
    """Votes in fewer than the given seconds, among those of known duration; gold included."""
    skips: Share
    """Skips among votes and skips; gold included."""
    seconds: float | None
    """Median duration of a vote."""

    def as_json(self) -> dict[str, Any]:
        """JSON types only; shares have a ``value`` too."""
        row = json_safe(asdict(self))
        shares = {key: part.value for key, part in vars(self).items() if isinstance(part, Share)}
        return row | {key: {"value": value, **row[key]} for key, value in shares.items()}


def rater_quality(
    items: Sequence[Item], votes: Sequence[Vote], *, fast_seconds: float = 2.0
) -> tuple[RaterQuality, ...]:
    """Numbers of every rater that has voted, sorted by name."""
    by_rater: dict[str, list[Vote]] = {}
    for vote in votes:
        by_rater.setdefault(vote.rater, []).append(replace(vote, is_suspended=False))
    everyone = independent(items, votes)
    return tuple(
        _quality(rater, items, by_rater[rater], _Others.of(everyone, rater), fast_seconds) for rater in sorted(by_rater)
    )


@dataclass(frozen=True, kw_only=True)
class _Others:
    """Judgements of all raters but one."""

    rows: Mapping[str, int]
    """Item → row of ``counts``."""
    counts: Int64
    """(U, 4) judgements in each category."""

    @classmethod
    def of(cls, everyone: Judgements, rater: str) -> _Others:
        is_own = np.array([name == rater for name in everyone.raters], dtype=np.bool_)[everyone.rater]
        counts = everyone.counts()
        np.subtract.at(counts, (everyone.item[is_own], everyone.category[is_own]), 1)
        return cls(rows={item.id: row for row, item in enumerate(everyone.items)}, counts=counts)

    def on(self, votes: Sequence[Vote]) -> Int64:
        """(len(votes), 4) judgements on the items of the votes."""
        none = np.zeros(self.counts.shape[1], dtype=np.int64)
        rows = (self.rows.get(vote.item) for vote in votes)
        found = [none if row is None else self.counts[row] for row in rows]
        return np.array(found, dtype=np.int64).reshape(-1, len(none))


def _quality(
    rater: str, items: Sequence[Item], votes: Sequence[Vote], others: _Others, fast_seconds: float
) -> RaterQuality:
    labels, gold = independent(items, votes), independent(items, votes, Purpose.GOLD)
    all_votes = (*labels.votes, *gold.votes)
    skips = labels.left_out.get("skip", 0) + gold.left_out.get("skip", 0)
    seconds = np.array([vote.seconds for vote in all_votes if vote.seconds is not None])
    left = _left_wins(labels.votes)
    longer, longer_others = _longer(labels, others)
    return RaterQuality(
        rater=rater,
        votes=len(all_votes),
        gold=share([_is_gold(vote, gold.items[i]) for vote, i in zip(gold.votes, gold.item)]),
        consistency=share(_consistent(labels, votes)),
        agreement=_agreement(labels, others),
        left=share(left),
        left_p=_binomial_p(left) if _are_sides_mixed(labels.votes) else None,
        longer=longer,
        longer_others=longer_others,
        fast=share(seconds < fast_seconds),
        skips=share(np.arange(len(all_votes) + skips) < skips),
        seconds=float(np.median(seconds)) if len(seconds) else None,
    )


def _is_gold(vote: Vote, item: Item) -> bool:
    return item.gold is not None and category(vote.choice) == category(item.gold)


def _consistent(labels: Judgements, votes: Sequence[Vote]) -> list[bool]:
    """Of each repeat of a label item that the rater has judged: whether its outcome is the first vote's."""
    first = {vote.item: category(vote.choice) for vote in labels.votes}
    repeats = (v for v in votes if v.is_repeat and v.choice is not Choice.SKIP and v.item in first)
    return [category(vote.choice) == first[vote.item] for vote in repeats]


def _agreement(labels: Judgements, others: _Others) -> Share:
    counts = others.on(labels.votes)
    top = np.sort(counts, axis=1)
    has_majority = top[:, -1] > top[:, -2]
    agrees = counts.argmax(1) == labels.category
    return share(agrees[has_majority], labels.clusters[labels.item[has_majority]])


def _left_wins(votes: Sequence[Vote]) -> Bool:
    """Of each vote for either answer: whether that answer was shown on the left."""
    decided = [vote for vote in votes if category(vote.choice) in (FIRST, SECOND)]
    return np.array([(category(v.choice) == FIRST) != v.is_swapped for v in decided], dtype=np.bool_)


def _are_sides_mixed(votes: Sequence[Vote]) -> bool:
    """Whether both sides occur: without, as in imported votes, left cannot be told from first."""
    return len({vote.is_swapped for vote in votes}) == 2


def _binomial_p(is_true: Bool) -> float:
    n = len(is_true)
    least = min(int(is_true.sum()), n - int(is_true.sum()))
    return min(1.0, 2 * float(bdtr(least, n, 0.5)))


def _longer(labels: Judgements, others: _Others) -> tuple[Share, Share]:
    """Share of votes for the longer answer, the rater's and the others', over the items that the rater decided."""
    lengths = np.array([[len(answer.text) for answer in item.answers] for item in labels.items]).reshape(-1, 2)
    longest = np.where(lengths[:, 0] > lengths[:, 1], FIRST, SECOND)[labels.item]
    kept = (lengths[:, 0] != lengths[:, 1])[labels.item] & np.isin(labels.category, (FIRST, SECOND))
    counts = others.on(labels.votes)[kept]
    cluster, rows = labels.clusters[labels.item[kept]], np.arange(int(kept.sum()))
    for_longer, decided = counts[rows, longest[kept]], counts[:, [FIRST, SECOND]].sum(1)
    theirs = np.repeat(True, for_longer.sum()), np.repeat(False, (decided - for_longer).sum())
    of_theirs = np.repeat(cluster, for_longer), np.repeat(cluster, decided - for_longer)
    own = share((labels.category == longest)[kept], cluster)
    return own, share(np.concatenate(theirs), np.concatenate(of_theirs))
