"""Putting a step together: what several ranks of several roles computed becomes one ``Experience``.

It runs in the process of the policy's first rank, so that the controller never holds a token.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import islice
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from rlhf.algorithms.rewards import kl_per_token, sum_by_sample
from rlhf.config.schema import ModelConfig, Recipe
from rlhf.experience import Scored, build_experience, experience_metrics
from rlhf.models.load import load_tokenizer
from rlhf.roles.forward import Share, join_samples, join_tokens, token_index
from rlhf.tracking.tracker import SampleRow
from rlhf.types import Experience, FinishReason, RolloutBlock, Sequences

SHOWN = 10**9
"""Second word of the seed that chooses the samples to show. Minibatches are shuffled by seed, step and epoch: with a
word that no step reaches, the two can never be the same stream."""


@dataclass(frozen=True, kw_only=True)
class BatchReport:
    """What the controller learns of a batch: numbers, and a few samples as text."""

    metrics: dict[str, float]
    samples: tuple[SampleRow, ...]


@dataclass(frozen=True, kw_only=True)
class Batch:
    """What the assembled step is about: its weight version and step, and where the tokenizer is."""

    recipe: Recipe
    tokenizer: str
    version: int
    step: int
    ranks: tuple[int, ...]
    """Shares of each block by the reward, the policy, the reference and the critic."""


def assemble(batch: Batch, *parts: Any) -> tuple[Experience, BatchReport]:
    """Join blocks and shares, in a fixed order of samples, and compute rewards and advantages over the whole.

    Args:
        parts: for each block: the block, then the shares of every rank of the four roles, as ``batch.ranks`` counts
            them.
    """
    width = 1 + sum(batch.ranks)
    scored = _sorted([_score(batch, parts[i], parts[i + 1 : i + width]) for i in range(0, len(parts), width)])
    algorithm = batch.recipe.algorithm
    experience = build_experience(scored, algorithm)
    metrics = experience_metrics(experience, scored.raw_scores, algorithm.kl_coef, batch.version)
    return experience, BatchReport(metrics=metrics, samples=_sample_rows(batch, experience))


def _score(batch: Batch, block: RolloutBlock, shares: Sequence[Share]) -> Scored:
    rest = iter(shares)
    reward, policy, reference, critic = (tuple(islice(rest, count)) for count in batch.ranks)
    return Scored(
        rollouts=block,
        raw_scores=join_samples(reward, len(block)),
        old_logprobs=join_tokens(policy, block.sequences),
        ref_logprobs=join_tokens(reference, block.sequences),
        values=join_tokens(critic, block.sequences),
    )


def _sorted(scored: Sequence[Scored]) -> Scored:
    """One whole, sorted by prompt and seed: blocks finish in any order, and the result must not depend on it."""
    rollouts = RolloutBlock.concatenate([s.rollouts for s in scored])
    order = np.lexsort((rollouts.seeds, rollouts.prompt_ids))
    tokens = token_index(rollouts.sequences, order)

    def joined(name: str, index: np.ndarray) -> np.ndarray:
        return np.concatenate([getattr(s, name) for s in scored])[index]

    sequences = Sequences.pack((rollouts.sequences.prompt(i), rollouts.sequences.response(i)) for i in order)
    return Scored(
        rollouts=RolloutBlock(
            sequences=sequences,
            logprobs=rollouts.logprobs[tokens],
            **{
                name: getattr(rollouts, name)[order]
                for name in ("prompt_ids", "weight_versions", "finish_reasons", "seeds")
            },
        ),
        raw_scores=joined("raw_scores", order),
        **{name: joined(name, tokens) for name in ("old_logprobs", "ref_logprobs", "values")},
    )


def _sample_rows(batch: Batch, experience: Experience) -> tuple[SampleRow, ...]:
    rollouts = experience.rollouts
    sequences = rollouts.sequences
    kl = kl_per_token(experience.old_logprobs, experience.ref_logprobs)
    sequence_kl = sum_by_sample(kl, sequences.response_lengths, experience.response_mask)
    tokenizer = _tokenizer(batch.tokenizer, batch.recipe.model.trust_remote_code)
    chosen = np.random.default_rng([batch.recipe.seed, SHOWN, batch.step]).permutation(len(rollouts))
    return tuple(
        SampleRow(
            prompt=tokenizer.decode(sequences.prompt(i), skip_special_tokens=True),
            response=tokenizer.decode(sequences.response(i), skip_special_tokens=True),
            score=float(experience.scores[i]),
            kl=float(sequence_kl[i]),
            finish_reason=FinishReason(rollouts.finish_reasons[i]).name.lower(),
            weight_version=int(rollouts.weight_versions[i]),
        )
        for i in chosen[: batch.recipe.tracking.samples_per_step]
    )


@cache
def _tokenizer(folder: str, trust_remote_code: bool) -> PreTrainedTokenizerBase:
    return load_tokenizer(folder, ModelConfig(trust_remote_code=trust_remote_code))
