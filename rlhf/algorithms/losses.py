"""Losses, per token or as sums over pairs.

The caller weighs tokens and divides by the one normaliser, over ranks and micro-batches: see ``normaliser``.

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


def bounded(log_ratio: Tensor) -> Tensor:
    """The log-ratio clamped to ±``LOG_RATIO_LIMIT``, with the derivative 1 everywhere.

    A clamp's own derivative is 0 beyond its limits: a token that has moved that far would get no gradient to come back
    by. NaN and infinities become NaN.
    """
    return log_ratio + (log_ratio.clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT) - log_ratio).detach()


@dataclass(frozen=True, kw_only=True)
class PolicyLoss:
    """Per token, (T,) each: ``loss`` to minimise, and detached statistics.

    These are the ratio, the approximate KL (½ of the squared log-ratio), and 1 where the clip binds.
    """

    loss: Tensor
    ratio: Tensor
    approxkl: Tensor
    clipped: Tensor


def policy_loss(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    clip_low: float,
    clip_high: float,
    dual_clip: float | None = None,
) -> PolicyLoss:
    """max(−Âρ, −Â clip(ρ, 1−ε_low, 1+ε_high)) of (T,) tokens, ρ = exp(log π_new − log π_old).

    Schulman et al. 2017, eq. 7. With ``dual_clip`` c the loss of a token with Â < 0 is at most −cÂ (Ye et al. 2020,
    eq. 3), so that one very unlikely token cannot rule an update.
    """
    log_ratio = bounded(logprobs - old_logprobs)
    ratio = log_ratio.exp()
    unclipped = -advantages * ratio
    clipped = -advantages * ratio.clamp(1 - clip_low, 1 + clip_high)
    loss = torch.maximum(unclipped, clipped)
    binds = clipped > unclipped
    if dual_clip is not None:
        bound = -advantages * dual_clip
        too_large = (advantages < 0) & (loss > bound)
        loss, binds = torch.where(too_large, bound, loss), binds | too_large
    return PolicyLoss(
        loss=loss,
        ratio=ratio.detach(),
        approxkl=0.5 * log_ratio.detach().square(),
        clipped=binds.detach().to(ratio.dtype),
    )


def kl_loss(logprobs: Tensor, old_logprobs: Tensor, ref_logprobs: Tensor) -> Tensor:
    """ρ·k3 of (T,) tokens, k3 = e^x − 1 − x with x = log π_ref − log π_new: the KL to the reference as a loss.

    Its value is never negative, and its gradient is right: d(ρ·k3) = ρ·(log π_new − log π_ref)·d log π_new, which in
    expectation over π_old is the gradient of KL(π_new ‖ π_ref), also after the policy has moved away from π_old.
    Without the factor ρ the gradient of k3 is that of the forward KL, and k1 has none (Schulman 2020, "Approximating
    KL divergence"; DeepSeek-V3.2, section 3.1). The expectation is over the next token at the states that were visited:
    how an early token changes the KL of later states is not in it. With the KL in the reward it is.

    The gradient is written down and not left to autograd, which would take it as the difference of two numbers near
    e^x: their rounding exceeds it from x = 15 on, and beyond the clamp one of the two is missing, and the sign turns.
    """
    ratio = bounded(logprobs - old_logprobs).exp().detach()
    x = (ref_logprobs - logprobs).clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT).detach()
    value = ratio * (x.expm1() - x)
    return value - ratio * x * (logprobs - logprobs.detach())


@dataclass(frozen=True, kw_only=True)
class ValueLoss:
    """Per token, (T,) each: ``loss`` to minimise; detached: 1 where the value was clipped."""

    loss: Tensor
    clipped: Tensor


def value_loss(values: Tensor, old_values: Tensor, returns: Tensor, clip_range: float | None) -> ValueLoss:
    """½ max((V−R)², (clip(V, V_old ± ε_v) − R)²) of (T,) tokens (Ziegler et al. 2019, code); None: ½ (V−R)²."""
    unclipped = (values - returns).square()
    if clip_range is None:
        return ValueLoss(loss=0.5 * unclipped, clipped=torch.zeros_like(unclipped))
    near = old_values + (values - old_values).clamp(-clip_range, clip_range)
    clipped = (near - returns).square()
    binds = (clipped > unclipped).detach().to(values.dtype)
    return ValueLoss(loss=0.5 * torch.maximum(unclipped, clipped), clipped=binds)


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
