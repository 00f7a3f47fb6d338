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


@dataclass(frozen=True, kw_only=True)
class DPOLoss:
    """Sums over pairs: ``loss`` to minimise, and detached statistics.

    These are the implicit rewards β log(π/π_ref) of both answers, and the pairs whose chosen answer has the larger one.
    """

    loss: Tensor
    chosen_rewards: Tensor
    rejected_rewards: Tensor
    correct: Tensor


def dpo_loss(
    chosen: Tensor,
    rejected: Tensor,
    ref_chosen: Tensor,
    ref_rejected: Tensor,
    beta: float,
    label_smoothing: float = 0.0,
) -> DPOLoss:
    """Σ −(1−e) log σ(βh) − e log σ(−βh) over (K,) pairs, h = (log π_c − log π_r) − (log ref_c − log ref_r), in nats.

    The arguments are log-probabilities of whole responses, summed over their tokens (Rafailov et al. 2023, eq. 7). With
    a label smoothing e > 0 that share of the pairs is taken to be the wrong way round (Mitchell 2023, "A note on DPO
    with noisy preferences"): the loss is then least at σ(βh) = 1 − e, and no longer falls for ever.
    """
    chosen_rewards, rejected_rewards = beta * (chosen - ref_chosen), beta * (rejected - ref_rejected)
    margins = chosen_rewards - rejected_rewards
    right, wrong = functional.logsigmoid(margins), functional.logsigmoid(-margins)
    return DPOLoss(
        loss=-((1 - label_smoothing) * right + label_smoothing * wrong).sum(),
        chosen_rewards=chosen_rewards.detach().sum(),
        rejected_rewards=rejected_rewards.detach().sum(),
        correct=(margins > 0).detach().sum(),
    )
