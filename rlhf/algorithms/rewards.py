"""From a score per response to a reward per token (Ziegler et al. 2019; Stiennon et al. 2020).

Shapes: B samples, R response tokens of all samples, packed.
"""

from __future__ import annotations

import numpy as np

from rlhf.types import Bool, FinishReason, Float32, Int32


def penalise_missing_eos(scores: Float32, finish_reasons: Int32, penalty: float | None) -> Float32:
    """(B,) scores, with −penalty in place of the score of each response that has no end token."""
    if penalty is None:
        return scores
    return np.where(finish_reasons == FinishReason.STOP, scores, np.float32(-penalty))


def kl_per_token(old_logprobs: Float32, ref_logprobs: Float32) -> Float32:
    """(R,) k_t = log π_old(a_t|s_t) − log π_ref(a_t|s_t), in nats.

    This is the estimator k1, the only one with the right optimum as a reward.
    """
    return old_logprobs - ref_logprobs


def token_rewards(
    scores: Float32, kl: Float32, response_lengths: Int32, response_mask: Bool, kl_coef: float
) -> Float32:
    """(R,) r_t = −β k_t, plus the score (B,) once, at the last token of each response that is in the mask."""
    rewards = np.where(response_mask, -kl_coef * kl, 0.0).astype(np.float64)
    for i, end in enumerate(np.cumsum(response_lengths)):
        inside = np.flatnonzero(response_mask[end - response_lengths[i] : end])
        if len(inside):
            rewards[end - response_lengths[i] + inside[-1]] += scores[i]
    return rewards.astype(np.float32)


def sum_by_sample(values: Float32, response_lengths: Int32, response_mask: Bool) -> Float32:
    """(B,) sum over each sample's masked tokens of a packed (R,) array."""
    sample = np.repeat(np.arange(len(response_lengths)), response_lengths)
    weights = np.where(response_mask, values, 0.0)
    return np.bincount(sample, weights=weights, minlength=len(response_lengths)).astype(np.float32)
