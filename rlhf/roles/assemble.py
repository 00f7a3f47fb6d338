"""Putting a step together: what several ranks of several roles computed becomes one ``Experience``.

It runs in the process of the policy's first rank, so that the controller never holds a token.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from itertools import islice
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from rlhf.algorithms.controller import AlgorithmState
from rlhf.algorithms.rewards import count_by_sample, kl_per_token, sum_by_sample
from rlhf.config.schema import ModelConfig, PPOConfig, Recipe
from rlhf.errors import MachineryError
from rlhf.experience import Scored, build_experience, experience_metrics, total_score
from rlhf.models.folder import load_tokenizer
from rlhf.roles.forward import Share, join_samples, join_tokens, token_index
from rlhf.tracking.histogram import Histograms, experience_histograms
from rlhf.tracking.samples import SampleRow, pick
from rlhf.types import Experience, FinishReason, Float32, RolloutBlock

SHOWN = 10**9
"""Second word of the seed that chooses the samples to show. Minibatches are shuffled by seed, step and epoch: with a
word that no step reaches, the two can never be the same stream."""

NAMED = 6
"""Samples that a message names at most."""


@dataclass(frozen=True, kw_only=True)
class BatchReport:
    """What the controller learns of a batch: numbers, a few samples as text, the algorithm's next state, and every so
    often histograms."""

    metrics: dict[str, float]
    samples: tuple[SampleRow, ...]
    state: AlgorithmState
    histograms: Histograms = field(default_factory=dict)

    def with_metrics(self, more: Mapping[str, float]) -> BatchReport:
        """The same with more numbers."""
        return replace(self, metrics={**self.metrics, **more})


@dataclass(frozen=True, kw_only=True)
class Contribution:
    """Who computed a part of every block: ``kind`` is one of ``score``, ``old_logprobs``, ``ref_logprobs``, ``values``.

    ``name`` is that of the reward's part, for a score; ``ranks`` is the number of shares.
    """

    kind: str
    ranks: int
    name: str = ""


@dataclass(frozen=True, kw_only=True)
class Batch:
    """What the assembled step is about, and where the tokenizer is."""

    recipe: Recipe
    tokenizer: str
    step: int
    state: AlgorithmState
    contributions: tuple[Contribution, ...]
    """The shares of each block, in their order."""


def assemble(batch: Batch, *parts: Any) -> tuple[Experience, BatchReport]:
    """Join blocks and shares, in a fixed order of samples, and compute rewards and advantages over the whole.

    Args:
        parts: for each block: the block, then its shares, as ``batch.contributions`` counts them.

    Raises:
        MachineryError: samples are missing, or there twice; or a number is NaN or infinite.
    """
    width = 1 + sum(contribution.ranks for contribution in batch.contributions)
    blocks = [_score(batch, parts[i], parts[i + 1 : i + width]) for i in range(0, len(parts), width)]
    scored = _sorted(blocks)
    _check_whole(scored.rollouts, batch.recipe.ppo, batch.step)
    sources = batch.recipe.rewards
    raw = total_score(scored.scores, {name: source.weight for name, source in sources.items()}, scored.dropped)
    experience, state = build_experience(scored, raw, batch.recipe.algorithm, batch.state)
    metrics = experience_metrics(experience, raw, batch.step) | _parts_metrics(scored)
    is_due = batch.step % batch.recipe.tracking.histogram_every == 0
    return experience, BatchReport(
        metrics=metrics,
        samples=_sample_rows(batch, experience),
        state=state,
        histograms=experience_histograms(experience) if is_due else {},
    )


def _score(batch: Batch, block: RolloutBlock, shares: Sequence[Share]) -> Scored:
    rest = iter(shares)
    scores: dict[str, Float32] = {}
    tokens: dict[str, Float32 | None] = {"values": None}
    for contribution in batch.contributions:
        own = tuple(islice(rest, contribution.ranks))
        if contribution.kind == "score":
            scores[contribution.name] = join_samples(own, len(block))
        else:
            tokens[contribution.kind] = join_tokens(own, block.sequences)
    dropped = block.set_aside.copy()
    for name, source in batch.recipe.rewards.items():
        if source.endpoint is not None and source.endpoint.on_failure == "drop":
            dropped |= np.isnan(scores[name])
    return Scored(rollouts=block, scores=scores, dropped=dropped, **tokens)  # type: ignore[arg-type]


def _sorted(blocks: Sequence[Scored]) -> Scored:
    """One whole, sorted by prompt and seed: blocks finish in any order, and the result must not depend on it."""
    rollouts = RolloutBlock.concatenate([block.rollouts for block in blocks])
    order = np.lexsort((rollouts.seeds, rollouts.prompt_ids))
    tokens = token_index(rollouts.sequences, order)

    def joined(name: str) -> Float32 | None:
        parts = [getattr(block, name) for block in blocks]
        return None if parts[0] is None else np.concatenate(parts)[tokens]

    old, ref = joined("old_logprobs"), joined("ref_logprobs")
    assert old is not None and ref is not None
    return Scored(
        rollouts=rollouts.select(order),
        scores={name: np.concatenate([block.scores[name] for block in blocks])[order] for name in blocks[0].scores},
        dropped=np.concatenate([block.dropped for block in blocks])[order],
        old_logprobs=old,
        ref_logprobs=ref,
        values=joined("values"),
    )


def _check_whole(rollouts: RolloutBlock, config: PPOConfig, step: int) -> None:
    """Every sample of a step is there once, whoever died on the way: the proof is made at each step.

    Set-aside samples keep their places. The seeds of a step are drawn so that no prompt has one twice.

    Raises:
        MachineryError: it is not so.
    """
    samples = Counter(zip(rollouts.prompt_ids.tolist(), rollouts.seeds.tolist()))
    answers = Counter(rollouts.prompt_ids.tolist())
    doubled = [f"prompt {prompt} with seed {seed}" for (prompt, seed), count in samples.items() if count > 1]
    uneven = [f"prompt {prompt} ({count})" for prompt, count in answers.items() if count % config.samples_per_prompt]
    faults = [f"there twice: {', '.join(doubled[:NAMED])}"] if doubled else []
    faults += [f"not {config.samples_per_prompt} answers to each of: {', '.join(uneven[:NAMED])}"] if uneven else []
    if faults or len(rollouts) != config.batch_size:
        count = f"step {step} has {len(rollouts)} samples of ppo.batch_size = {config.batch_size}"
        raise MachineryError("; ".join([count, *faults]))


def _parts_metrics(scored: Scored) -> dict[str, float]:
    """The mean of each part of the reward, where there are several."""
    if len(scored.scores) < 2:
        return {}
    there = ~scored.dropped
    return {
        f"objective/scores/{name}": float(part[there].mean()) for name, part in scored.scores.items() if there.any()
    }


def _sample_rows(batch: Batch, experience: Experience) -> tuple[SampleRow, ...]:
    rollouts = experience.rollouts
    sequences = rollouts.sequences
    kl = kl_per_token(experience.old_logprobs, experience.ref_logprobs)
    sequence_kl = sum_by_sample(kl, sequences.response_lengths, experience.response_mask)
    advantages = sum_by_sample(experience.advantages, sequences.response_lengths, experience.response_mask)
    counted = count_by_sample(sequences.response_lengths, experience.response_mask)
    tokenizer = _tokenizer(batch.tokenizer, batch.recipe.model.trust_remote_code)
    drawn = np.random.default_rng([batch.recipe.seed, SHOWN, batch.step]).permutation(np.flatnonzero(counted > 0))
    return tuple(
        SampleRow(
            prompt=tokenizer.decode(sequences.prompt(i), skip_special_tokens=True),
            response=tokenizer.decode(sequences.response(i), skip_special_tokens=True),
            score=float(experience.scores[i]),
            kl=float(sequence_kl[i]),
            advantage=float(advantages[i] / counted[i]),
            finish_reason=FinishReason(rollouts.finish_reasons[i]).name.lower(),
            weight_version=int(rollouts.weight_versions[i]),
            pick=why,
        )
        for i, why in pick(experience.scores.tolist(), drawn.tolist(), batch.recipe.tracking.samples_per_step)
    )


@cache
def _tokenizer(folder: str, trust_remote_code: bool) -> PreTrainedTokenizerBase:
    return load_tokenizer(folder, ModelConfig(trust_remote_code=trust_remote_code))
