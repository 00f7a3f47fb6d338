"""From scored rollouts to an ``Experience``: rewards, advantages and whitening over the global batch, in one place.

Shapes: B samples, R response tokens of all samples, packed.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from rlhf.algorithms.advantages import generalised_advantages, whiten
from rlhf.algorithms.rewards import kl_per_token, penalise_missing_eos, sum_by_sample, token_rewards
from rlhf.config.schema import AlgorithmConfig
from rlhf.errors import MachineryError
from rlhf.evaluation.correlation import length_correlation
from rlhf.types import Experience, FinishReason, Float32, RolloutBlock


@dataclass(frozen=True, kw_only=True)
class Scored:
    """Rollouts and what the models say of them: raw_scores (B,); old_logprobs, ref_logprobs, values (R,)."""

    rollouts: RolloutBlock
    raw_scores: Float32
    old_logprobs: Float32
    ref_logprobs: Float32
    values: Float32

    def __post_init__(self) -> None:
        for name in ("raw_scores", "old_logprobs", "ref_logprobs", "values"):
            bad = int(np.count_nonzero(~np.isfinite(getattr(self, name))))
            if bad:
                raise MachineryError(f"{name}: {bad} of {getattr(self, name).size} numbers are NaN or infinite")


def build_experience(scored: Scored, algorithm: AlgorithmConfig) -> Experience:
    """Rewards (score at the last token, −β KL at each), GAE, returns, and advantages whitened over the global batch."""
    sequences = scored.rollouts.sequences
    lengths = sequences.response_lengths
    mask = np.ones(int(lengths.sum()), dtype=bool)
    scores = penalise_missing_eos(scored.raw_scores, scored.rollouts.finish_reasons, algorithm.missing_eos_penalty)
    kl = kl_per_token(scored.old_logprobs, scored.ref_logprobs)
    rewards = token_rewards(scores, kl, lengths, mask, algorithm.kl_coef)
    advantages, returns = generalised_advantages(rewards, scored.values, lengths, mask, algorithm.gamma, algorithm.lam)
    return Experience(
        rollouts=scored.rollouts,
        scores=scores,
        old_logprobs=scored.old_logprobs,
        ref_logprobs=scored.ref_logprobs,
        values=scored.values,
        advantages=whiten(advantages, mask) if algorithm.whiten_advantages else advantages,
        returns=returns,
        response_mask=mask,
    )


def experience_metrics(experience: Experience, raw_scores: Float32, kl_coef: float, version: int) -> dict[str, float]:
    """What a batch says about the policy, under TRL's names where it has one.

    ``objective/kl`` is summed over a response's tokens and averaged over responses, in nats.
    """
    rollouts, mask = experience.rollouts, experience.response_mask
    lengths = rollouts.sequences.response_lengths
    kl = kl_per_token(experience.old_logprobs, experience.ref_logprobs)
    sequence_kl = sum_by_sample(kl, lengths, mask)
    total = experience.scores - kl_coef * sequence_kl
    gap = np.abs(experience.old_logprobs - rollouts.logprobs)[mask]
    error = (experience.returns - experience.values)[mask]
    spread = float(experience.returns[mask].var())
    return {
        "objective/kl": float(sequence_kl.mean()),
        "objective/logratio_abs_mean": float(np.abs(kl[mask]).mean()),
        "objective/entropy": float(-sum_by_sample(experience.old_logprobs, lengths, mask).mean()),
        "objective/scores": float(experience.scores.mean()),
        "objective/scores_std": float(experience.scores.std()),
        "objective/raw_scores": float(raw_scores.mean()),
        "objective/non_score_reward": float(-kl_coef * sequence_kl.mean()),
        "objective/rlhf_reward": float(total.mean()),
        "objective/rlhf_reward_std": float(total.std()),
        "objective/score_length_correlation": length_correlation(experience.scores, lengths),
        "critic/explained_variance": 1.0 - float(error.var()) / spread if spread > 0 else 0.0,
        "rollout/logprob_gap_mean": float(gap.mean()),
        "rollout/logprob_gap_max": float(gap.max()),
        "rollout/length_mean": float(lengths.mean()),
        "rollout/truncated_fraction": float((rollouts.finish_reasons == FinishReason.LENGTH).mean()),
        "rollout/staleness_mean": float((version - rollouts.weight_versions).mean()),
        "rollout/tokens": float(lengths.sum()),
    }
