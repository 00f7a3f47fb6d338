"""State that an algorithm carries from step to step: β, and the moments of the scores.

The state is immutable: a snapshot keeps a reference to it, and a repeated step starts from the same numbers.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from rlhf.algorithms.moments import Moments
from rlhf.config.schema import AdaptiveKLConfig, AlgorithmConfig

LARGEST_CHANGE = 0.2
"""Clip of the proportional error of the adaptive β (Ziegler et al. 2019, section 2.2)."""


@dataclass(frozen=True, kw_only=True)
class AlgorithmState:
    """β of the next step, and the moments of all raw scores so far."""

    kl_coef: float
    scores: Moments = field(default_factory=Moments)

    @classmethod
    def start(cls, algorithm: AlgorithmConfig) -> AlgorithmState:
        """The state before the first step."""
        return cls(kl_coef=algorithm.kl_coef)


def next_kl_coef(kl_coef: float, config: AdaptiveKLConfig | None, sequence_kl: float, responses: int) -> float:
    """Return the next step's β: β (1 + clip(KL/target − 1, ±0.2) · n/horizon); unchanged without ``config``.

    Args:
        sequence_kl: KL summed over a response's tokens and averaged over responses, in nats.
        responses: n, the responses of the step.
    """
    if config is None:
        return kl_coef
    error = min(max(sequence_kl / config.target - 1, -LARGEST_CHANGE), LARGEST_CHANGE)
    return kl_coef * (1 + error * responses / config.horizon)
