"""Tables of a status about agreement and the raters' quality."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from launch.feedback.status_tables import Cell, Table
from rlhf.evaluation.bootstrap import Estimate
from rlhf.feedback.agreement import Coefficients, agreement
from rlhf.feedback.flags import FlagSettings, flags
from rlhf.feedback.quality import RaterQuality, Share, rater_quality
from rlhf.feedback.records import Item, Vote
from rlhf.feedback.store import Store

RESAMPLES = 200
"""Of the bootstrap: enough for an interval that is read off a page, and a fifth of the time of a report's."""

_NAMES = {
    "raw": "raw agreement",
    "unanimous": "unanimous items",
    "fleiss": "Fleiss' kappa",
    "nominal": "Krippendorff's alpha, nominal",
    "ordinal": "Krippendorff's alpha, ordinal",
    "interval": "Krippendorff's alpha, interval",
    "strength": "Krippendorff's alpha of the strength",
}


def quality_tables(store: Store) -> Iterator[Table]:
    """Flags, agreement, and each rater's numbers; nothing while there are no votes."""
    items, votes = store.items(), store.votes()
    if not votes:
        return
    fast = store.settings.minimum_seconds
    yield flag_table(items, votes, fast)
    yield agreement_table(items, votes)
    yield quality_table(items, votes, fast)


def flag_table(items: Sequence[Item], votes: Sequence[Vote], fast_seconds: float) -> Table:
    """Raters whose votes deserve a look."""
    found = flags(items, votes, FlagSettings(fast_seconds=fast_seconds))
    return Table(
        name="flags",
        title="Flags",
        columns=("alias", "reason", "evidence"),
        rows=[(flag.rater, flag.reason.value, flag.evidence) for flag in found],
        note="A flag is a reason to look at a rater's votes, not a verdict." if found else "No rater is flagged.",
    )


def agreement_table(items: Sequence[Item], votes: Sequence[Vote]) -> Table:
    """Coefficients over all label items, and by version of the guidelines."""
    found = agreement(items, votes, resamples=RESAMPLES)
    rows = _coefficient_rows("all", found.overall)
    if len(found.guidelines) > 1:
        for version, coefficients in found.guidelines.items():
            rows += _coefficient_rows("unknown" if version is None else str(version), coefficients)
    columns = ("guidelines", "measure", "value", "low", "high", "items", "remark")
    return Table(name="agreement", title="Agreement", columns=columns, rows=rows, note="With 95% intervals.")


def _coefficient_rows(version: str, coefficients: Coefficients) -> list[tuple[Cell, ...]]:
    return [(version, name, *_estimate(getattr(coefficients, key))) for key, name in _NAMES.items()]


def _estimate(estimate: Estimate) -> tuple[Cell, ...]:
    return estimate.value, estimate.low, estimate.high, estimate.items, estimate.reason


def quality_table(items: Sequence[Item], votes: Sequence[Vote], fast_seconds: float) -> Table:
    """Each rater's numbers."""
    columns = ("alias", "votes", "gold right", "consistent", "with the others", "left", "longer", "too fast", "skips")
    rows = [_quality_row(quality) for quality in rater_quality(items, votes, fast_seconds=fast_seconds)]
    return Table(name="quality", title="Quality", columns=columns, rows=rows, note="Fractions of the votes that count.")


def _quality_row(quality: RaterQuality) -> tuple[Cell, ...]:
    shares: tuple[Share, ...] = (
        quality.gold,
        quality.consistency,
        quality.agreement,
        quality.left,
        quality.longer,
        quality.fast,
        quality.skips,
    )
    return quality.rater, quality.votes, *(share.value for share in shares)
