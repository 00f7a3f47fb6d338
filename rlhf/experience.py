"""Builds an ``Experience`` from scored rollouts: rewards, advantages and whitening over the global batch.

Shapes: B samples, R response tokens of all samples, packed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from rlhf.algorithms.advantages import estimate_advantages, generalised_advantages, uniform_groups, whiten
from rlhf.algorithms.importance import importance_weights
from rlhf.algorithms.rewards import (
    count_by_sample,
    kl_per_token,
    sample_of_token,
    shape_scores,
    sum_by_sample,
    token_rewards,
)
from rlhf.algorithms.state import AlgorithmState, next_kl_coef
from rlhf.config.schema import AlgorithmConfig
from rlhf.errors import NonFiniteError
from rlhf.types import Bool, Experience, FinishReason, Float32, RolloutBlock


@dataclass(frozen=True, kw_only=True)
class Scored:
    """Rollouts with their scores, log-probabilities and values.

    Shapes: scores (B,) for each part of the reward, by name, NaN only for samples in ``dropped``; dropped (B,) true for
    samples that a reward failed to score; old_logprobs, ref_logprobs (R,); values (R,), or None without a critic.
    """

    rollouts: RolloutBlock
    scores: Mapping[str, Float32]
    dropped: Bool
    old_logprobs: Float32
    ref_logprobs: Float32
    values: Float32 | None

    @property
    def mask(self) -> Bool:
        """(R,) mask of the tokens that are trained on: those that the policy sampled, in samples that have a score."""
        lengths = self.rollouts.sequences.response_lengths
        return self.rollouts.response_mask & ~self.dropped[sample_of_token(lengths)]

    def check(self) -> None:
        """Check that all numbers inside the mask are finite; those outside it are not read.

        Raises:
            NonFiniteError: some are NaN or infinite; the message names every such tensor.
        """
        tokens = {
            "old_logprobs (by the policy)": self.old_logprobs,
            "ref_logprobs (by the reference)": self.ref_logprobs,
            "logprobs (by the engine)": self.rollouts.logprobs,
        }
        if self.values is not None:
            tokens["values (by the critic)"] = self.values
        inside = {name: array[self.mask] for name, array in tokens.items()}
        inside |= {f"scores (by the reward {name!r})": array[~self.dropped] for name, array in self.scores.items()}
        bad = {name: int(np.count_nonzero(~np.isfinite(array))) for name, array in inside.items()}
        if any(bad.values()):
            found = [f"{name}: {count} of {inside[name].size}" for name, count in bad.items() if count]
            raise NonFiniteError(f"numbers that are NaN or infinite, in {'; '.join(found)}")


def total_score(scores: Mapping[str, Float32], weights: Mapping[str, float], dropped: Bool) -> Float32:
    """(B,) weighted sum of the parts of the reward; 0 for dropped samples."""
    total = sum((weights[name] * part.astype(np.float64) for name, part in scores.items()), np.zeros(len(dropped)))
    return np.where(dropped, 0.0, total).astype(np.float32)


def build_experience(
    scored: Scored, raw: Float32, algorithm: AlgorithmConfig, state: AlgorithmState, max_length: int
) -> tuple[Experience, AlgorithmState]:
    """Compute shaped scores, token rewards, advantages and returns, and the algorithm's state for the next step.

    Args:
        raw: (B,) total score of each response.
        max_length: longest allowed response, in tokens.
    """
    scored.check()
    block, mask = scored.rollouts, scored.mask
    lengths = block.sequences.response_lengths
    seen = replace(state, scores=state.scores.add(raw[~scored.dropped]))
    counted = count_by_sample(lengths, mask)
    scores = shape_scores(raw, counted, block.finish_reasons, algorithm, seen.scores, max_length)
    old, ref = (np.where(mask, array, np.float32(0)) for array in (scored.old_logprobs, scored.ref_logprobs))
    kl = kl_per_token(old, ref)
    rewards = token_rewards(scores, kl, lengths, mask, state.kl_coef if algorithm.kl_in == "reward" else 0.0)
    values = returns = None
    if algorithm.has_critic:
        assert scored.values is not None
        values = np.where(mask, scored.values, np.float32(0))
        advantages, returns = generalised_advantages(rewards, values, lengths, mask, algorithm.gamma, algorithm.lam)
    else:
        advantages = estimate_advantages(algorithm, scores, rewards, block.prompt_ids, lengths, mask)
    experience = Experience(
        rollouts=block,
        scores=scores,
        response_mask=mask,
        old_logprobs=old,
        ref_logprobs=ref,
        advantages=whiten(advantages, mask) if algorithm.whiten_advantages else advantages,
        importance_weights=importance_weights(old, block.logprobs, lengths, mask, algorithm),
        kl_coef=state.kl_coef,
        values=values,
        returns=returns,
    )
    return experience, _advance(seen, algorithm, kl, experience)


def drop_uniform_groups(
    experience: Experience, size: int, order: np.random.Generator
) -> tuple[Experience, float, float]:
    """Leave groups of equal scores out of the update (Yu et al. 2025, section 3.2).

    Returns the update's experience, the fraction of all responses whose group has equal scores, and the fraction of the
    update's ``size`` responses whose group has unequal ones.

    Groups of unequal scores come first, each kind in the random ``order``; the first ``size`` responses remain. Of
    these, tokens of groups of equal scores leave the response mask, so that losses and normalisers do not count them.
    Whitening, metrics and β are over the whole batch: call it after them.
    """
    lengths, mask = experience.rollouts.sequences.response_lengths, experience.response_mask
    is_counted = count_by_sample(lengths, mask) > 0
    uniform = uniform_groups(experience.scores, experience.rollouts.prompt_ids, is_counted)
    kept = mask & ~uniform[sample_of_token(lengths)]
    per_token = ("old_logprobs", "ref_logprobs", "advantages", "importance_weights")
    arrays: dict[str, Any] = {name: np.where(kept, getattr(experience, name), np.float32(0)) for name in per_token}
    fraction = float(uniform[is_counted].mean()) if is_counted.any() else 0.0
    dropped = replace(experience, response_mask=kept, **arrays)
    filled = min(1.0, float((~uniform).sum()) / size)
    if size == len(uniform):
        return dropped, fraction, filled
    _, group = np.unique(experience.rollouts.prompt_ids, return_inverse=True)
    rank = order.permutation(group.max() + 1)[group]
    return dropped.select(np.sort(np.lexsort((rank, uniform))[:size])), fraction, filled


def _advance(seen: AlgorithmState, algorithm: AlgorithmConfig, kl: Float32, experience: Experience) -> AlgorithmState:
    """The next step's state: β is updated from the mean KL of the responses that have tokens inside the mask."""
    mask, lengths = experience.response_mask, experience.rollouts.sequences.response_lengths
    is_trained = count_by_sample(lengths, mask) > 0
    if not is_trained.any():
        return seen
    mean_kl = float(sum_by_sample(kl, lengths, mask)[is_trained].mean())
    return replace(seen, kl_coef=next_kl_coef(seen.kl_coef, algorithm.adaptive_kl, mean_kl, int(is_trained.sum())))


def experience_metrics(experience: Experience, raw: Float32, version: int) -> dict[str, float]:
    """Metrics of a batch, under TRL's names where TRL has the metric.

    ``objective/kl`` is summed over a response's tokens and averaged over responses, in nats. Samples without a token
    inside the mask are counted in ``rollout/dropped`` and in the metrics of generation (length, truncated, staleness,
    tokens), but in no other metric.
    """
    rollouts, mask = experience.rollouts, experience.response_mask
    lengths = rollouts.sequences.response_lengths
    counted = count_by_sample(lengths, mask)
    is_trained = counted > 0
    kl = kl_per_token(experience.old_logprobs, experience.ref_logprobs)
    sequence_kl = sum_by_sample(kl, lengths, mask)[is_trained]
    scores = experience.scores[is_trained].astype(
        np.float64
    )  # in float32 equal scores can have a standard deviation > 0
    total = scores - experience.kl_coef * sequence_kl
    gap = np.abs(experience.old_logprobs - rollouts.logprobs)[mask]
    weights = experience.importance_weights[mask]
    always = {
        "objective/kl_coef": experience.kl_coef,
        "rollout/length_mean": float(lengths.mean()),
        "rollout/truncated_fraction": float((rollouts.finish_reasons == FinishReason.LENGTH).mean()),
        "rollout/staleness_mean": float((version - rollouts.weight_versions).mean()),
        "rollout/dropped": float(len(is_trained) - is_trained.sum()),
        "rollout/set_aside": float(rollouts.set_aside.sum()),
        "rollout/tokens": float(lengths.sum()),
        "rollout/prefix_cache_hit_rate": float(rollouts.cached_tokens.sum() / rollouts.sequences.prompt_lengths.sum()),
    }
    if not is_trained.any():
        return always
    return {
        **always,
        "objective/kl": float(sequence_kl.mean()),
        "objective/logratio_abs_mean": float(np.abs(kl[mask]).mean()),
        "objective/entropy": -float(sum_by_sample(experience.old_logprobs, lengths, mask)[is_trained].mean()),
        "objective/scores": float(scores.mean()),
        "objective/scores_std": float(scores.std()),
        "objective/raw_scores": float(raw[is_trained].mean()),
        "objective/non_score_reward": -experience.kl_coef * float(sequence_kl.mean()),
        "objective/rlhf_reward": float(total.mean()),
        "objective/rlhf_reward_std": float(total.std()),
        "objective/score_length_correlation": length_correlation(scores, counted[is_trained]),
        "rollout/logprob_gap_mean": float(gap.mean()),
        "rollout/logprob_gap_max": float(gap.max()),
        "rollout/importance_weight_mean": float(weights.mean()),
        "rollout/importance_weight_max": float(weights.max()),
        **_critic_metrics(experience),
    }


def _critic_metrics(experience: Experience) -> dict[str, float]:
    if experience.values is None or experience.returns is None:
        return {}
    returns = experience.returns[experience.response_mask]
    error = returns - experience.values[experience.response_mask]
    spread = float(returns.var()) if len(returns) else 0.0
    return {"critic/explained_variance": 1.0 - float(error.var()) / spread if spread > 0 else 0.0}


def length_correlation(scores: ArrayLike, lengths: ArrayLike) -> float:
    """Pearson correlation of ``scores`` (n,) with ``lengths`` (n,), which shows a length bias; 0 if n < 2 or one of
    them is constant."""
    x, y = np.asarray(scores, dtype=np.float64), np.asarray(lengths, dtype=np.float64)
    if len(x) < 2 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return 0.0
    return float(np.corrcoef(x, y)[0, 1])
