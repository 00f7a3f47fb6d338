"""Truncated importance sampling: weights that correct for the difference between the engine's and trainer's policies.

Engine and trainer use different kernels, whose probabilities differ in low precision; samples may also come from older
weights. The weight is π_trainer/π_engine, without gradient (Yao et al. 2025, "Your efficient RL framework secretly
brings you off-policy training").

Shapes: B samples, R response tokens of all samples, packed.
"""

from __future__ import annotations

from typing import TypeVar

import numpy as np
from torch import Tensor

from rlhf.algorithms.losses import LOG_RATIO_LIMIT
from rlhf.algorithms.rewards import sample_of_token, sum_by_sample
from rlhf.config.schema import AlgorithmConfig
from rlhf.types import Bool, Float32, Int32

Weights = TypeVar("Weights", Float32, Tensor)


def importance_weights(
    old_logprobs: Float32,
    engine_logprobs: Float32,
    response_lengths: Int32,
    response_mask: Bool,
    algorithm: AlgorithmConfig,
) -> Float32:
    """(R,) importance weights: 1 without correction, 0 outside the mask.

    ``sequence_*`` multiplies the ratios of a response and assigns the product to each of its tokens. ``*_truncate``
    limits weights to the cap; ``*_mask`` sets weights above the cap to 0.

    Args:
        old_logprobs, engine_logprobs: (R,) log-probabilities of the sampled tokens by trainer and engine, in nats.
        response_lengths: (B,) response tokens of each sample.
        response_mask: (R,) true for the tokens that are trained on.
    """
    kind, cap = algorithm.importance_sampling, algorithm.importance_cap
    if kind == "none":
        return response_mask.astype(np.float32)
    old, engine = (np.where(response_mask, array, np.float32(0)) for array in (old_logprobs, engine_logprobs))
    difference = old - engine
    if kind.startswith("sequence"):
        totals = sum_by_sample(difference, response_lengths, response_mask)
        difference = totals[sample_of_token(response_lengths)]
    weights = np.exp(np.clip(difference, -LOG_RATIO_LIMIT, LOG_RATIO_LIMIT))
    return np.where(response_mask, _limit(weights, kind, cap), 0.0).astype(np.float32)


def token_importance(old_logprobs: Tensor, engine_logprobs: Tensor, algorithm: AlgorithmConfig) -> Tensor:
    """(T,) ``importance_weights`` of tokens inside the mask, on their device; not for ``sequence_*``."""
    kind, cap = algorithm.importance_sampling, algorithm.importance_cap
    weights = (old_logprobs - engine_logprobs).clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT).exp()
    if kind == "none":
        return weights.new_ones(weights.shape)
    return _limit(weights, kind, cap)


def _limit(weights: Weights, kind: str, cap: float) -> Weights:
    """Limit weights to the cap (``*_truncate``), or set those above it to 0 (``*_mask``)."""
    return weights.clip(max=cap) if kind.endswith("truncate") else weights * (weights <= cap)
