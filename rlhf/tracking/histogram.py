"""Histograms, with which the actor that holds a batch reports distributions to the controller."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from rlhf.algorithms.rewards import count_by_sample
from rlhf.types import Experience

BINS = 64


@dataclass(frozen=True, kw_only=True)
class Histogram:
    """Counts of values in ``BINS`` equal bins from ``low`` to ``high``."""

    counts: tuple[int, ...]
    low: float
    high: float
    total: float
    """Sum of the values."""
    squares: float
    """Sum of their squares."""

    @classmethod
    def of(cls, values: np.ndarray) -> Histogram | None:
        """Histogram of the finite values; None if there are none."""
        finite = np.asarray(values, dtype=np.float64)
        finite = finite[np.isfinite(finite)]
        if not finite.size:
            return None
        counts, edges = np.histogram(finite, bins=BINS)
        return cls(
            counts=tuple(counts.tolist()),
            low=float(edges[0]),
            high=float(edges[-1]),
            total=float(finite.sum()),
            squares=float(np.square(finite).sum()),
        )

    @property
    def edges(self) -> list[float]:
        """The ``BINS + 1`` edges of the bins."""
        return [float(edge) for edge in np.linspace(self.low, self.high, len(self.counts) + 1)]


Histograms = Mapping[str, Histogram]
"""Histograms by metric name."""


def experience_histograms(experience: Experience) -> Histograms:
    """Histograms of a batch: score and length per response; advantage and two log-ratios per trained token.

    The log-ratios are those of the trainer's policy to the reference, and to the engine.
    """
    rollouts, mask = experience.rollouts, experience.response_mask
    lengths = rollouts.sequences.response_lengths
    is_trained = count_by_sample(lengths, mask) > 0
    values = {
        "scores": experience.scores[is_trained],
        "response_length": lengths[~rollouts.set_aside],
        "advantages": experience.advantages[mask],
        "log_ratio_to_reference": (experience.old_logprobs - experience.ref_logprobs)[mask],
        "log_ratio_to_engine": (experience.old_logprobs - rollouts.logprobs)[mask],
    }
    found = {f"histogram/{name}": Histogram.of(array) for name, array in values.items()}
    return {name: histogram for name, histogram in found.items() if histogram is not None}
