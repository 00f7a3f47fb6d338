"""Agreement between raters: overall, by version of the guidelines, by rater, and by pair of raters.

Categories are the outcomes: first, tie, second, both bad. For nominal coefficients both bad is a category of its own,
since it says something else than a tie; on the ordinal and interval scales it counts as a tie, between first and
second. A skip is a missing value. Only judgements count (``judgements.py``): adjudications, repeats, votes of suspended
raters, and gold and calibration items do not. Repeats measure self-consistency (``quality.py``).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import combinations
from typing import Any

import numpy as np

from rlhf.evaluation.bootstrap import Estimate, Measure, estimate
from rlhf.feedback.coefficients import (
    Float64,
    Scale,
    cohen_kappa,
    coincidences,
    divide,
    fleiss_kappa,
    fleiss_parts,
    krippendorff_alpha,
    raw_agreement,
    table_agreement,
)
from rlhf.feedback.judgements import CATEGORIES, Judgements, independent
from rlhf.feedback.records import Item, Vote
from rlhf.storage.jsonl import json_safe
from rlhf.types import Int64

ONE_CATEGORY = "all votes are in one category, so agreement by chance is complete"
_K = len(CATEGORIES)
Bootstrap = Callable[[Sequence[Measure], Int64], tuple[Estimate, ...]]
"""From measures and the items' clusters to estimates."""


@dataclass(frozen=True, kw_only=True)
class Coefficients:
    """Agreement of a set of judgements, over the items that have at least two."""

    raw: Estimate
    """Mean over items of the fraction of pairs of votes with the same outcome."""
    unanimous: Estimate
    """Fraction of items on which all votes have the same outcome."""
    fleiss: Estimate
    """Fleiss' kappa."""
    nominal: Estimate
    """Krippendorff's alpha; both bad is a category."""
    ordinal: Estimate
    """Krippendorff's alpha of first, tie, second."""
    interval: Estimate
    """Krippendorff's alpha of the numbers 1, 0, −1."""
    strength: Estimate
    """Ordinal alpha of the five strengths, much first to much second."""


@dataclass(frozen=True, kw_only=True)
class RaterAgreement:
    """One rater against the others, over the items that both voted on."""

    rater: str
    raw: Estimate
    """Mean over items of the fraction of the others' votes that agree with the rater's."""
    kappa: Estimate
    """Cohen's kappa against the others, whose votes share a weight of 1 per item (Schouten 1982, Stat. Neerl. 36)."""


@dataclass(frozen=True, kw_only=True)
class PairAgreement:
    """Two raters, over the items that both voted on."""

    raters: tuple[str, str]
    raw: Estimate
    kappa: Estimate
    """Cohen's kappa."""


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """Agreement on label items, with 95% bootstrap intervals by prompt."""

    overall: Coefficients
    guidelines: Mapping[int | None, Coefficients]
    """Version of the guidelines (None: unknown) → agreement of its votes; empty if no version is known."""
    raters: tuple[RaterAgreement, ...]
    pairs: tuple[PairAgreement, ...]
    """Pairs of raters with at least one item in common."""
    left_out: Mapping[str, int]
    """Reason → number of votes that do not count."""

    def as_json(self) -> dict[str, Any]:
        """JSON types only; undefined values are null beside their reason."""
        return json_safe(asdict(self))


def agreement(items: Sequence[Item], votes: Sequence[Vote], *, seed: int = 0, resamples: int = 1000) -> Agreement:
    """Agreement of the raters of ``items``; votes on other items are counted as left out."""
    judged = independent(items, votes)
    bootstrap = partial(estimate, undefined=ONE_CATEGORY, seed=seed, resamples=resamples)
    by_version = _by_version(judged)
    return Agreement(
        overall=_coefficients(judged, bootstrap),
        guidelines={version: _coefficients(some, bootstrap) for version, some in by_version.items()},
        raters=tuple(_against_others(judged, rater, bootstrap) for rater in range(len(judged.raters))),
        pairs=_pairs(judged, bootstrap),
        left_out=judged.left_out,
    )


def _by_version(judged: Judgements) -> dict[int | None, Judgements]:
    versions = sorted({vote.guideline for vote in judged.votes}, key=lambda version: (version is None, version or 0))
    if versions in ([], [None]):
        return {}
    return {version: judged.select(vote.guideline == version for vote in judged.votes) for version in versions}


def _coefficients(judged: Judgements, bootstrap: Bootstrap) -> Coefficients:
    nominal, ordered, strengths = judged.counts(), judged.counts(3), _strength_counts(judged)
    unanimous = (nominal.max(1, initial=0) == nominal.sum(1)).astype(np.float64)
    has_pair = nominal.sum(1) > 1

    def alpha(counts: Int64, scale: Scale) -> Measure:
        return Measure(coincidences(counts)[has_pair], partial(krippendorff_alpha, scale=scale))

    measures = {
        "raw": Measure(fleiss_parts(nominal)[has_pair], raw_agreement),
        "unanimous": Measure(np.column_stack([unanimous, np.ones(len(unanimous))])[has_pair], _mean),
        "fleiss": Measure(fleiss_parts(nominal)[has_pair], fleiss_kappa),
        "nominal": alpha(nominal, Scale.NOMINAL),
        "ordinal": alpha(ordered, Scale.ORDINAL),
        "interval": alpha(ordered, Scale.INTERVAL),
        "strength": alpha(strengths, Scale.ORDINAL),
    }
    found = bootstrap(tuple(measures.values()), judged.clusters[has_pair])
    return Coefficients(**dict(zip(measures, found)))


def _mean(parts: Float64) -> Float64:
    return divide(parts[..., 0], parts[..., 1])


def _strength_counts(judged: Judgements) -> Int64:
    """(U, 5) judgements of each item from much first to much second."""
    cells = judged.item * 5 + 2 - judged.strength
    return np.bincount(cells, minlength=len(judged.items) * 5).reshape(len(judged.items), 5)


def _against_others(judged: Judgements, rater: int, bootstrap: Bootstrap) -> RaterAgreement:
    own = judged.rater == rater
    item, outcome = judged.item[own], judged.category[own]
    others = judged.counts()[item].astype(np.float64)
    others[np.arange(len(item)), outcome] -= 1
    has_other = others.sum(1) > 0
    tables = np.eye(_K)[outcome[has_other], :, None] * _shares(others[has_other])[:, None, :]
    raw, kappa = _table_estimates(judged, item[has_other], tables, bootstrap)
    return RaterAgreement(rater=judged.raters[rater], raw=raw, kappa=kappa)


def _shares(counts: Float64) -> Float64:
    return counts / counts.sum(1, keepdims=True)


def _table_estimates(
    judged: Judgements, item: Int64, tables: Float64, bootstrap: Bootstrap
) -> tuple[Estimate, Estimate]:
    measures = (Measure(tables, table_agreement), Measure(tables, cohen_kappa))
    raw, kappa = bootstrap(measures, judged.clusters[item])
    return raw, kappa


def _pairs(judged: Judgements, bootstrap: Bootstrap) -> tuple[PairAgreement, ...]:
    found = []
    for (first, second), cells in sorted(_common_items(judged).items()):
        item, a, b = np.array(cells).T
        raw, kappa = _table_estimates(judged, item, np.eye(_K)[a, :, None] * np.eye(_K)[b, None, :], bootstrap)
        found.append(PairAgreement(raters=(judged.raters[first], judged.raters[second]), raw=raw, kappa=kappa))
    return tuple(found)


def _common_items(judged: Judgements) -> dict[tuple[int, int], list[tuple[int, int, int]]]:
    """Pair of raters → (item, category by the first, category by the second) of the items that both voted on."""
    votes: dict[int, list[tuple[int, int]]] = {}
    for item, rater, outcome in zip(judged.item.tolist(), judged.rater.tolist(), judged.category.tolist()):
        votes.setdefault(item, []).append((rater, outcome))
    common: dict[tuple[int, int], list[tuple[int, int, int]]] = {}
    for item, of_item in votes.items():
        for (first, a), (second, b) in combinations(sorted(of_item), 2):
            common.setdefault((first, second), []).append((item, a, b))
    return common
