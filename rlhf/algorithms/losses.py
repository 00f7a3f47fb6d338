"""Losses, per token or summed over pairs.

The caller weights the tokens and divides by the global normaliser: see ``normaliser.py``.

Shapes: T tokens of a micro-batch inside the response mask; K pairs.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

LOG_RATIO_LIMIT = 20.0
"""Log-ratios are clamped to ±20 before the exponential: e^20 is beyond any clip range and does not overflow."""


def clamp_log_ratio(log_ratio: Tensor) -> Tensor:
    """Clamp the log-ratio to ±``LOG_RATIO_LIMIT`` with a straight-through gradient of 1.

    A plain clamp has derivative 0 beyond its limits; such tokens would get no gradient. NaN and infinities become NaN.
    """
    return log_ratio + (log_ratio.clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT) - log_ratio).detach()


@dataclass(frozen=True, kw_only=True)
class PolicyLoss:
    """Loss and detached statistics per token, (T,) each."""

    loss: Tensor
    """To minimise."""
    ratio: Tensor
    """ρ."""
    approxkl: Tensor
    """½ (log ρ)²."""
    clipped: Tensor
    """1 where the clip binds, else 0."""


def policy_loss(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    clip_low: float,
    clip_high: float,
    dual_clip: float | None = None,
    samples: Tensor | None = None,
) -> PolicyLoss:
    """Clipped PPO policy loss per token: max(−Âρ, −Â clip(ρ, 1−ε_low, 1+ε_high)), (T,), ρ = exp(log π_new − log π_old).

    Schulman et al. 2017, eq. 7. With ``dual_clip`` c the loss of a token with Â < 0 is at most −cÂ (Ye et al. 2020,
    eq. 3), so that one token with a large ratio cannot dominate an update.

    Args:
        samples: (T,) index of each token's sample, for GSPO: ρ is then that of the token's whole response, as
            ``sequence_log_ratio`` computes it; ``approxkl`` stays that of the token.
    """
    log_ratio = clamp_log_ratio(logprobs - old_logprobs)
    ratio = (log_ratio if samples is None else sequence_log_ratio(log_ratio, samples)).exp()
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


def sequence_log_ratio(log_ratio: Tensor, samples: Tensor) -> Tensor:
    """Mean log-ratio of each token's response, (T,), in nats per token (Zheng et al. 2025, eq. 7 and 14).

    The gradient of each element is that of the token's own log-ratio (GSPO-token). Summed over a response with weights
    1/length and equal advantages it is the gradient of GSPO; with unequal importance weights each token keeps its own.

    Args:
        samples: (T,) index of each token's sample, less than T. The mean is over a response's tokens that are given.
    """
    values = log_ratio.detach()
    sums, lengths = (torch.zeros_like(values).index_add(0, samples, x) for x in (values, torch.ones_like(values)))
    return (sums / lengths.clamp(min=1))[samples] + (log_ratio - values)


def cispo_loss(logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, clip_high: float) -> PolicyLoss:
    """CISPO loss per token: −sg[min(ρ, 1+ε_high)] Â log π_new, (T,); sg stops the gradient.

    MiniMax (2025), eq. 4 and 5, without the lower limit. A token whose ratio is clipped keeps its gradient, unlike in
    ``policy_loss``.
    """
    log_ratio = clamp_log_ratio(logprobs - old_logprobs).detach()
    ratio = log_ratio.exp()
    return PolicyLoss(
        loss=-ratio.clamp(max=1 + clip_high) * advantages * logprobs,
        ratio=ratio,
        approxkl=0.5 * log_ratio.square(),
        clipped=(ratio > 1 + clip_high).to(ratio.dtype),
    )


def kl_loss(logprobs: Tensor, old_logprobs: Tensor, ref_logprobs: Tensor) -> Tensor:
    """KL to the reference as a loss per token: ρ·k3, (T,), k3 = e^x − 1 − x with x = log π_ref − log π_new.

    The value is ≥ 0. The gradient, d(ρ·k3) = ρ·(log π_new − log π_ref)·d log π_new, is in expectation over π_old that
    of KL(π_new ‖ π_ref) per token at visited states, on later passes too. Without ρ, k3 has the gradient of the forward
    KL, and the gradient of k1 has expectation 0 (Schulman 2020, "Approximating KL divergence"; DeepSeek-V3.2, section
    3.1). Unlike the KL in the reward, the loss ignores the effect of a token on the KL of later states.

    The gradient is written out because autograd would compute it as the difference of two numbers near e^x. In float32
    their rounding errors reach 2% of the difference at x = 15, and exceed it near x = 20; beyond the clamp one term is
    0 and the gradient has the wrong sign.
    """
    ratio = clamp_log_ratio(logprobs - old_logprobs).exp().detach()
    x = (ref_logprobs - logprobs).clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT).detach()
    value = ratio * (x.expm1() - x)
    return value - ratio * x * (logprobs - logprobs.detach())


@dataclass(frozen=True, kw_only=True)
class ValueLoss:
    """Loss and detached statistics per token, (T,) each."""

    loss: Tensor
    """To minimise."""
    clipped: Tensor
    """1 where the clip binds, else 0."""


def value_loss(values: Tensor, old_values: Tensor, returns: Tensor, clip_range: float | None) -> ValueLoss:
    """Clipped value loss per token: ½ max((V−R)², (clip(V, V_old ± ε_v) − R)²), (T,); without a range, ½ (V−R)².

    As in the code of Ziegler et al. (2019).
    """
    unclipped = (values - returns).square()
    if clip_range is None:
        return ValueLoss(loss=0.5 * unclipped, clipped=torch.zeros_like(unclipped))
    near = old_values + (values - old_values).clamp(-clip_range, clip_range)
    clipped = (near - returns).square()
    binds = (clipped > unclipped).detach().to(values.dtype)
    return ValueLoss(loss=0.5 * torch.maximum(unclipped, clipped), clipped=binds)


def preference_loss(chosen: Tensor, rejected: Tensor, margins: Tensor) -> Tensor:
    """Preference loss, summed over (K,) pairs: Σ −log σ(r_chosen − r_rejected − margin).

    Bradley and Terry (1952); margin as in Llama 2.
    """
    return -functional.logsigmoid(chosen - rejected - margins).sum()


@dataclass(frozen=True, kw_only=True)
class DPOLoss:
    """Loss and detached statistics, each a sum over pairs."""

    loss: Tensor
    """To minimise."""
    chosen_rewards: Tensor
    """Implicit rewards β log(π/π_ref) of the chosen responses."""
    rejected_rewards: Tensor
    correct: Tensor
    """Number of pairs whose chosen response has the larger implicit reward."""


def dpo_loss(
    chosen: Tensor,
    rejected: Tensor,
    ref_chosen: Tensor,
    ref_rejected: Tensor,
    beta: float,
    label_smoothing: float = 0.0,
) -> DPOLoss:
    """DPO loss, summed over (K,) pairs: Σ −(1−e) log σ(βh) − e log σ(−βh).

    h = (log π_c − log π_r) − (log ref_c − log ref_r), in nats. The arguments are log-probabilities of whole responses,
    summed over their tokens (Rafailov et al. 2023, eq. 7). A label smoothing e > 0 assumes that a fraction e of the
    pairs is mislabelled (Mitchell 2023, "A note on DPO with noisy preferences"): the loss then has its minimum at
    σ(βh) = 1 − e instead of at infinity.
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


def label_loss(rewards: Tensor, is_good: Tensor) -> Tensor:
    """Loss of unpaired labels, summed over (K,) answers: Σ −log σ(r) of good ones, −log σ(−r) of bad ones.

    Binary cross-entropy with P(good) = σ(r), as of outcome-supervised reward models (Lightman et al. 2023).

    Args:
        is_good: (K,) boolean.
    """
    return -functional.logsigmoid(torch.where(is_good, rewards, -rewards)).sum()


@dataclass(frozen=True, kw_only=True)
class KTOLoss:
    """Loss and detached values of (K,) answers."""

    loss: Tensor
    """() sum over the answers, to minimise."""
    rewards: Tensor
    """(K,) implicit rewards β log(π/π_ref)."""
    correct: Tensor
    """() number of answers whose reward is on the right side of the reference point βz."""


def kto_loss(
    logprobs: Tensor,
    reference: Tensor,
    is_good: Tensor,
    kl: float,
    beta: float,
    weights: tuple[float, float] = (1.0, 1.0),
) -> KTOLoss:
    """KTO loss, summed over (K,) answers: Σ λ (1 − σ(β(h − z))) of good ones, λ (1 − σ(β(z − h))) of bad ones.

    h = log π(y|x) − log π_ref(y|x), in nats, of whole responses; z ≥ 0 is an estimate of KL(π ‖ π_ref) without
    gradient (Ethayarajh et al. 2024, eq. 8).

    Args:
        is_good: (K,) boolean.
        kl: z, see ``kl_estimate``.
        weights: λ of good and of bad answers.
    """
    log_ratios = logprobs - reference
    values = torch.where(is_good, log_ratios - kl, kl - log_ratios)
    good, bad = (torch.full_like(values, weight) for weight in weights)
    return KTOLoss(
        loss=(torch.where(is_good, good, bad) * torch.sigmoid(-beta * values)).sum(),
        rewards=beta * log_ratios.detach(),
        correct=(values > 0).detach().sum(),
    )


def kl_estimate(log_ratio_sum: float, count: int) -> float:
    """KTO's z: the mean log-ratio of ``count`` mismatched answers, those of other prompts, and at least 0.

    Ethayarajh et al. (2024), section 4.1. It is biased, and needs no answers of the policy.
    """
    return max(0.0, log_ratio_sum / count)
