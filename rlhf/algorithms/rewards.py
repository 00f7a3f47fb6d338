"""Rewards per token from a score per response (Ziegler et al. 2019; Stiennon et al. 2020).

Shapes: B samples, R response tokens of all samples, packed.
"""

from __future__ import annotations

import numpy as np

from rlhf.algorithms.moments import Moments
from rlhf.config.schema import AlgorithmConfig
from rlhf.types import Bool, FinishReason, Float32, Int32

LEAST_STD = 1e-8
"""Scores are not scaled if the standard deviation is at most this, for example after a first batch of equal scores."""


def shape_scores(
    raw: Float32,
    lengths: Float32,
    finish_reasons: Int32,
    algorithm: AlgorithmConfig,
    moments: Moments,
    max_length: int,
) -> Float32:
    """(B,) scores that the policy is trained on: scaled, clipped, then penalised; the penalties are not scaled.

    The length penalties also apply to truncated responses.

    Args:
        raw: (B,) raw scores of the reward.
        lengths: (B,) response tokens inside the mask.
        moments: those of all raw scores so far, this batch included.
        max_length: longest allowed response, in tokens.
    """
    scores = raw.astype(np.float64)
    if algorithm.reward_scale == "running_std" and moments.std > LEAST_STD:
        scores = scores / moments.std
    if algorithm.reward_clip is not None:
        scores = scores.clip(-algorithm.reward_clip, algorithm.reward_clip)
    scores = penalise_missing_eos(scores, finish_reasons, algorithm)
    scores = scores - overlong_penalty(lengths, algorithm.overlong_buffer, max_length)
    return (scores - algorithm.length_penalty * lengths).astype(np.float32)


def overlong_penalty(lengths: Float32, buffer: int | None, max_length: int) -> np.ndarray:
    """(B,) soft overlong punishment (Yu et al. 2025, eq. 13), as a number to subtract; 0 without a ``buffer``.

    It is 0 up to ``max_length`` − ``buffer`` tokens, and rises in a straight line to 1 at ``max_length``.
    """
    if buffer is None:
        return np.zeros(len(lengths))
    return np.clip((lengths.astype(np.float64) - (max_length - buffer)) / buffer, 0.0, 1.0)


def penalise_missing_eos(scores: np.ndarray, finish_reasons: Int32, algorithm: AlgorithmConfig) -> np.ndarray:
    """(B,) scores; a response without an end token gets −penalty (``replace``) or score − penalty (``subtract``)."""
    penalty = algorithm.missing_eos_penalty
    if penalty is None:
        return scores
    without = scores - penalty if algorithm.missing_eos == "subtract" else np.full_like(scores, -penalty)
    return np.where(finish_reasons == FinishReason.STOP, scores, without)


def kl_per_token(old_logprobs: Float32, ref_logprobs: Float32) -> Float32:
    """(R,) k_t = log π_old(a_t|s_t) − log π_ref(a_t|s_t), in nats.

    This is the estimator k1. With k2 or k3 as a reward, policy gradients do not lead to the optimum of score − β KL.
    """
    return old_logprobs - ref_logprobs


def token_rewards(
    scores: Float32, kl: Float32, response_lengths: Int32, response_mask: Bool, kl_coef: float
) -> Float32:
    """(R,) reward of each token: r_t = −β k_t, plus the score at a response's last token inside the mask; 0 outside it.

    Args:
        scores: (B,) shaped score of each response.
        kl: (R,) k_t, in nats.
        kl_coef: β.
    """
    rewards = np.where(response_mask, -kl_coef * kl, 0.0).astype(np.float64)
    kept = np.flatnonzero(response_mask)
    sample = sample_of_token(response_lengths)[kept]
    is_last = np.append(sample[1:] != sample[:-1], True) if len(sample) else np.zeros(0, dtype=bool)
    rewards[kept[is_last]] += scores[sample[is_last]]
    return rewards.astype(np.float32)


def sum_by_sample(values: Float32, response_lengths: Int32, response_mask: Bool) -> Float32:
    """(B,) sum of a packed (R,) array over each sample's tokens inside the mask."""
    weights = np.where(response_mask, values, 0.0)
    sums = np.bincount(sample_of_token(response_lengths), weights=weights, minlength=len(response_lengths))
    return sums.astype(np.float32)


def count_by_sample(response_lengths: Int32, response_mask: Bool) -> Float32:
    """(B,) number of each sample's tokens inside the mask; 0 for a sample that is left out."""
    return sum_by_sample(np.ones(len(response_mask), dtype=np.float32), response_lengths, response_mask)


def sample_of_token(response_lengths: Int32) -> np.ndarray:
    """(R,) index of the sample that each response token belongs to."""
    return np.repeat(np.arange(len(response_lengths)), response_lengths)
