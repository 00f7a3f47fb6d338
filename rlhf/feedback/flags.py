"""Flags of raters for a moderator: guessing, a preferred side, too fast votes, skips.

A flag is a reason to look at a rater's votes, not a verdict.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from scipy.special import betaln

from rlhf.feedback.guessing import Guessing, guessing
from rlhf.feedback.quality import RaterQuality, rater_quality
from rlhf.feedback.records import Item, Vote


class Reason(StrEnum):
    """Why a rater is flagged."""

    GUESSING = "guessing"
    """The votes look independent of which answer is better."""
    SIDE = "side"
    """One side of the page is preferred, left or right."""
    FAST = "fast"
    """Many votes are too fast to have read the answers."""
    SKIPS = "skips"
    """Many items are skipped."""


@dataclass(frozen=True, kw_only=True)
class Flag:
    """A reason to look at a rater's votes."""

    rater: str
    reason: Reason
    evidence: str
    """The numbers, for a moderator."""


@dataclass(frozen=True, kw_only=True)
class FlagSettings:
    """When a rater is flagged."""

    guessing: float = 0.5
    """Smallest probability of guessing: more likely than not."""
    guessing_votes: int = 55
    """Votes from which on ``guessing`` applies."""
    guessing_early: float = 0.99
    """Smallest probability of guessing before that."""
    side: float = 1000.0
    """Smallest likelihood ratio of a preferred side against none; 1/side bounds the chance of ever flagging a rater."""
    side_share: float = 0.65
    """Smallest share of the preferred side: a real but small preference does no harm while sides are drawn."""
    fast_seconds: float = 2.0
    """A vote in less is too fast."""
    fast_share: float = 0.3
    """Share of too fast votes from which on a rater is flagged."""
    skip_share: float = 0.5
    """Share of skips from which on a rater is flagged."""
    least_votes: int = 20
    """Votes from which on ``fast_share`` and ``skip_share`` apply."""


DEFAULT_FLAGS = FlagSettings()


def flags(items: Sequence[Item], votes: Sequence[Vote], settings: FlagSettings = DEFAULT_FLAGS) -> list[Flag]:
    """Flags of the raters that are not suspended, by rater.

    May be called after every vote. Guessing is judged by a posterior probability whose prior is estimated from all
    raters (``guessing.py``), which limits false flags among many raters; after few votes it takes near certainty,
    which limits them over repeated looks. docs/feedback.md gives the rates in simulation.

    A preferred side is judged by an e-value, the likelihood ratio of a share with the prior Beta(½, ½) against ½, which
    exceeds 1000 with probability below 0.001 over any number of looks (Ville 1939; Robbins 1970, Ann. Math. Stat. 41).
    """
    active = [vote for vote in votes if not vote.is_suspended]
    guesses = guessing(items, active)
    found = []
    for quality in rater_quality(items, active, fast_seconds=settings.fast_seconds):
        reasons = {
            Reason.GUESSING: _guessing_evidence(guesses.get(quality.rater), quality, settings),
            Reason.SIDE: _side_evidence(quality, settings),
            Reason.FAST: _fast_evidence(quality, settings),
            Reason.SKIPS: _skip_evidence(quality, settings),
        }
        found += [Flag(rater=quality.rater, reason=reason, evidence=text) for reason, text in reasons.items() if text]
    return found


def _guessing_evidence(found: Guessing | None, quality: RaterQuality, settings: FlagSettings) -> str:
    if found is None:
        return ""
    least = settings.guessing if found.votes >= settings.guessing_votes else settings.guessing_early
    if found.probability < least:
        return ""
    parts = {"with the others": quality.agreement, "with gold": quality.gold, "with own votes": quality.consistency}
    agrees = ", ".join(f"{part.count} of {part.n} {name}" for name, part in parts.items() if part.n)
    return f"probability of guessing {found.probability:.2f} after {found.votes} votes; agrees {agrees}"


def _side_evidence(quality: RaterQuality, settings: FlagSettings) -> str:
    left, n = quality.left.count, quality.left.n
    most = max(left, n - left)
    if quality.left_p is None or most < settings.side_share * n or _side_ratio(left, n) < settings.side:
        return ""
    return f"{most} of {n} votes for the {'left' if left == most else 'right'} side (p = {quality.left_p:.1g})"


def _side_ratio(left: int, n: int) -> float:
    """Likelihood ratio of a share with the prior Beta(½, ½) against ½."""
    return float(np.exp(betaln(left + 0.5, n - left + 0.5) - betaln(0.5, 0.5) + n * np.log(2)))


def _fast_evidence(quality: RaterQuality, settings: FlagSettings) -> str:
    fast = quality.fast
    if fast.n < settings.least_votes or fast.count < settings.fast_share * fast.n:
        return ""
    return f"{fast.count} of {fast.n} votes in less than {settings.fast_seconds:g} s"


def _skip_evidence(quality: RaterQuality, settings: FlagSettings) -> str:
    skips = quality.skips
    if skips.n < settings.least_votes or skips.count < settings.skip_share * skips.n:
        return ""
    return f"{skips.count} of {skips.n} items skipped"
