"""Losses as sums over tokens or pairs.

The caller divides by the one normaliser, the global count over ranks and micro-batches.

Shapes: T trained tokens of a micro-batch, those inside the response mask; K pairs.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

LOG_RATIO_LIMIT = 20.0
"""Log-ratios are clamped to ±20 before the exponential.

e^20 is large enough to clip and small enough not to overflow.
"""


@dataclass(frozen=True, kw_only=True)
class PolicyLoss:
    """Sums over tokens: ``loss`` to minimise, and detached statistics.

    These are the ratio, its square, the approximate KL (½ of the squared log-ratio) and the clipped tokens.
    """

    loss: Tensor
    ratio: Tensor
    ratio_squared: Tensor
    approxkl: Tensor
    clipped: Tensor


def policy_loss(logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, clip_range: float) -> PolicyLoss:
    """Σ max(−Âρ, −Â clip(ρ, 1−ε, 1+ε)) over (T,) tokens, ρ = exp(log π_new − log π_old).

    Schulman et al. 2017, eq. 7.
    """
    log_ratio = (logprobs - old_logprobs).clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)
    ratio = log_ratio.exp()
    unclipped = -advantages * ratio
    clipped = -advantages * ratio.clamp(1 - clip_range, 1 + clip_range)
    return PolicyLoss(
        loss=torch.maximum(unclipped, clipped).sum(),
        ratio=ratio.detach().sum(),
        ratio_squared=ratio.detach().square().sum(),
        approxkl=0.5 * log_ratio.detach().square().sum(),
        clipped=(clipped > unclipped).detach().sum(),
    )


@dataclass(frozen=True, kw_only=True)
class ValueLoss:
    """Sums over tokens: ``loss`` to minimise; detached: tokens whose value was clipped."""

    loss: Tensor
    clipped: Tensor


def value_loss(values: Tensor, old_values: Tensor, returns: Tensor, clip_range: float) -> ValueLoss:
    """½ Σ max((V−R)², (clip(V, V_old ± ε_v) − R)²) over (T,) tokens (Ziegler et al. 2019, code)."""
    near = old_values + (values - old_values).clamp(-clip_range, clip_range)
    unclipped, clipped = (values - returns).square(), (near - returns).square()
    return ValueLoss(loss=0.5 * torch.maximum(unclipped, clipped).sum(), clipped=(clipped > unclipped).detach().sum())


def preference_loss(chosen: Tensor, rejected: Tensor, margins: Tensor) -> Tensor:
    """Σ −log σ(r_chosen − r_rejected − margin) over (K,) pairs (Bradley and Terry 1952; margin as in Llama 2)."""
    return -functional.logsigmoid(chosen - rejected - margins).sum()
