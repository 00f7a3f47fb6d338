"""Assembles a step: joins the results of all roles' ranks into one ``Experience``.

Runs in the process of the policy's first rank, so that the controller holds no response tokens.
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

from rlhf.algorithms.rewards import count_by_sample, kl_per_token, sum_by_sample
from rlhf.algorithms.state import AlgorithmState
from rlhf.config.schema import ModelConfig, PPOConfig, Recipe
from rlhf.errors import MachineryError
from rlhf.experience import Scored, build_experience, experience_metrics, total_score
from rlhf.models.folder import load_tokenizer
from rlhf.roles.block_result import BlockResult, join_samples, join_tokens, token_index
from rlhf.tracking.histogram import Histograms, experience_histograms
from rlhf.tracking.samples import SampleRow, pick
from rlhf.types import Experience, FinishReason, Float32, RolloutBlock

SAMPLE_STREAM = 10**9
"""Part of the seed (seed, ``SAMPLE_STREAM``, step) with which the samples to log are selected.

It is larger than any step, so that this seed never equals that of a minibatch shuffle, (seed, step, epoch).
"""

MOST_NAMED = 6
"""Largest number of samples that a message names."""


@dataclass(frozen=True, kw_only=True)
class BatchReport:
    """Report on a batch to the controller: metrics, a few samples as text, the algorithm's next state, and histograms
    every ``tracking.histogram_every`` steps."""

    metrics: dict[str, float]
    samples: tuple[SampleRow, ...]
    state: AlgorithmState
    histograms: Histograms = field(default_factory=dict)

    def with_metrics(self, more: Mapping[str, float]) -> BatchReport:
        """Return a copy with ``more`` added to the metrics."""
        return replace(self, metrics={**self.metrics, **more})


@dataclass(frozen=True, kw_only=True)
class ResultSpec:
    """Describes a result that every block needs: its kind, and the number of ranks that each return a part of it."""

    kind: str
    """Kind of a per-block result: ``score``, ``old_logprobs``, ``ref_logprobs`` or ``values``."""
    ranks: int
    """Number of ranks that return parts."""
    name: str = ""
    """Name of the part of the reward, for a score; empty for the other kinds."""


@dataclass(frozen=True, kw_only=True)
class StepInputs:
    """Context of the step to assemble."""

    recipe: Recipe
    tokenizer_folder: str
    step: int
    state: AlgorithmState
    result_specs: tuple[ResultSpec, ...]
    """Results that each block needs; the parts of each follow the block in ``parts``, in this order."""


def assemble(batch: StepInputs, *parts: Any) -> tuple[Experience, BatchReport]:
    """Join blocks and partial results in a fixed order of samples, and compute rewards and advantages over the batch.

    Args:
        parts: for each block, the block followed by its partial results in the order of ``batch.result_specs``.

    Raises:
        MachineryError: samples are missing or duplicated, or a number is NaN or infinite.
    """
    width = 1 + sum(result_spec.ranks for result_spec in batch.result_specs)
    blocks = [_join_parts(batch, parts[i], parts[i + 1 : i + width]) for i in range(0, len(parts), width)]
    scored = _concatenate_sorted(blocks)
    _check_complete(scored.rollouts, batch.recipe.ppo, batch.step)
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


def _join_parts(batch: StepInputs, block: RolloutBlock, results: Sequence[BlockResult]) -> Scored:
    remaining = iter(results)
    scores: dict[str, Float32] = {}
    tokens: dict[str, Float32 | None] = {"values": None}
    for result_spec in batch.result_specs:
        own = tuple(islice(remaining, result_spec.ranks))
        if result_spec.kind == "score":
            scores[result_spec.name] = join_samples(own, len(block))
        else:
            tokens[result_spec.kind] = join_tokens(own, block.sequences)
    dropped = block.set_aside.copy()
    for name, source in batch.recipe.rewards.items():
        if source.endpoint is not None and source.endpoint.on_failure == "drop":
            dropped |= np.isnan(scores[name])
    return Scored(rollouts=block, scores=scores, dropped=dropped, **tokens)  # type: ignore[arg-type]


def _concatenate_sorted(blocks: Sequence[Scored]) -> Scored:
    """Concatenate blocks and sort by prompt and seed, so that the result does not depend on the order of completion."""
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


def _check_complete(rollouts: RolloutBlock, config: PPOConfig, step: int) -> None:
    """Check that the step has every sample exactly once, whichever actors failed during it.

    Quarantined samples are included. A sample is identified by its prompt and seed: a step draws distinct seeds for the
    samples of a prompt.

    Raises:
        MachineryError: a sample is missing or duplicated.
    """
    samples = Counter(zip(rollouts.prompt_ids.tolist(), rollouts.seeds.tolist()))
    answers = Counter(rollouts.prompt_ids.tolist())
    duplicates = [f"prompt {prompt} with seed {seed}" for (prompt, seed), count in samples.items() if count > 1]
    uneven = [f"prompt {prompt} ({count})" for prompt, count in answers.items() if count % config.samples_per_prompt]
    faults = [f"duplicates: {', '.join(duplicates[:MOST_NAMED])}"] if duplicates else []
    if uneven:
        named = ", ".join(uneven[:MOST_NAMED])
        faults.append(f"prompts without {config.samples_per_prompt} responses (number of responses): {named}")
    if faults or len(rollouts) != config.batch_size:
        count = f"step {step} has {len(rollouts)} samples of ppo.batch_size = {config.batch_size}"
        raise MachineryError("; ".join([count, *faults]))


def _parts_metrics(scored: Scored) -> dict[str, float]:
    """Mean score of each part of the reward, if it has several parts."""
    kept = ~scored.dropped
    if len(scored.scores) < 2 or not kept.any():
        return {}
    return {f"objective/scores/{name}": float(part[kept].mean()) for name, part in scored.scores.items()}


def _sample_rows(batch: StepInputs, experience: Experience) -> tuple[SampleRow, ...]:
    rollouts = experience.rollouts
    sequences = rollouts.sequences
    kl = kl_per_token(experience.old_logprobs, experience.ref_logprobs)
    sequence_kl = sum_by_sample(kl, sequences.response_lengths, experience.response_mask)
    advantages = sum_by_sample(experience.advantages, sequences.response_lengths, experience.response_mask)
    counted = count_by_sample(sequences.response_lengths, experience.response_mask)
    tokenizer = _tokenizer(batch.tokenizer_folder, batch.recipe.model.trust_remote_code)
    random = np.random.default_rng([batch.recipe.seed, SAMPLE_STREAM, batch.step])
    shuffled = random.permutation(np.flatnonzero(counted > 0))
    return tuple(
        SampleRow(
            prompt=tokenizer.decode(sequences.prompt(i), skip_special_tokens=True),
            response=tokenizer.decode(sequences.response(i), skip_special_tokens=True),
            score=float(experience.scores[i]),
            kl=float(sequence_kl[i]),
            advantage=float(advantages[i] / counted[i]),
            finish_reason=FinishReason(rollouts.finish_reasons[i]).name.lower(),
            weight_version=int(rollouts.weight_versions[i]),
            pick=reason,
        )
        for i, reason in pick(experience.scores.tolist(), shuffled.tolist(), batch.recipe.tracking.samples_per_step)
    )


@cache
def _tokenizer(folder: str, trust_remote_code: bool) -> PreTrainedTokenizerBase:
    return load_tokenizer(folder, ModelConfig(trust_remote_code=trust_remote_code))
