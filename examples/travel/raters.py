"""Simulated raters: they compare two answers by the guideline, each with a strictness of their own, and they err.

A rater sees of an answer its content points times form to the power of the rater's strictness (1 is the guideline
itself), prefers a to b with Bradley and Terry's probability σ(k · (seen_a − seen_b)), and now and then presses the
wrong button.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from examples.travel.guideline import assess


class Comparison(NamedTuple):
    """Two answers to one prompt, in no order of merit."""

    prompt: str
    a: str
    b: str


@dataclass(frozen=True, kw_only=True)
class Rater:
    """One person who compares answers."""

    name: str
    strictness: float
    """Exponent of the form: over 1 minds bad form more than the guideline does, under 1 less."""
    sharpness: float
    """k: log-odds of the better answer per point of difference."""
    slip: float
    """Probability of pressing the wrong button."""

    def probability(self, comparison: Comparison) -> float:
        """Probability that this rater prefers ``a``."""
        seen_a, seen_b = (self._sees(comparison.prompt, answer) for answer in (comparison.a, comparison.b))
        judged = 1 / (1 + math.exp(-self.sharpness * (seen_a - seen_b)))
        return (1 - self.slip) * judged + self.slip * (1 - judged)

    def prefers_a(self, comparison: Comparison, rng: random.Random) -> bool:
        """One judgement."""
        return rng.random() < self.probability(comparison)

    def _sees(self, prompt: str, answer: str) -> float:
        assessment = assess(prompt, answer)
        return assessment.content * assessment.form**self.strictness


RATERS = (
    Rater(name="Ada", strictness=1.0, sharpness=14.0, slip=0.02),
    Rater(name="Bo", strictness=0.6, sharpness=10.0, slip=0.04),
    Rater(name="Cleo", strictness=1.6, sharpness=14.0, slip=0.03),
)
"""The office's raters; each comparison goes to one of them, drawn evenly."""


def label(comparison: Comparison, rng: random.Random) -> bool:
    """Whether a rater, drawn evenly, prefers ``a``."""
    return rng.choice(RATERS).prefers_a(comparison, rng)


def label_probability(comparison: Comparison) -> float:
    """Probability of ``label``: the mean over the raters, since the label does not say whose it is."""
    return sum(rater.probability(comparison) for rater in RATERS) / len(RATERS)


def ceiling(pairs: Sequence[Comparison]) -> float:
    """Best accuracy that any reward model can expect on these pairs' labels: the mean of max(p, 1 − p)."""
    probabilities = [label_probability(pair) for pair in pairs]
    return sum(max(p, 1 - p) for p in probabilities) / len(probabilities)
