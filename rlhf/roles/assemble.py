"""Assembles a step: joins the results of all roles' ranks into one ``Experience``.

Runs in the process of the policy's first rank, so that the controller holds no response tokens.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from itertools import islice
from typing import Any, cast

import numpy as np
from transformers import PreTrainedTokenizerBase

from rlhf.algorithms.rewards import count_by_sample, kl_per_token, sum_by_sample
from rlhf.algorithms.state import AlgorithmState
from rlhf.config.schema import ModelConfig, PPOConfig, Recipe
from rlhf.errors import MachineryError
from rlhf.experience import Scored, build_experience, drop_uniform_groups, experience_metrics, total_score
from rlhf.models.folder import load_tokenizer
from rlhf.roles.block_result import BlockResult, join_samples, join_tokens, token_index
from rlhf.tracking.histogram import Histograms, experience_histograms
from rlhf.tracking.samples import SampleRow, pick
from rlhf.types import Experience, FinishReason, Float32, RolloutBlock, StepReport, exclusive_sum, packed_index

SAMPLE_STREAM = 10**9
"""Part of the seed (seed, ``SAMPLE_STREAM``, step) with which the samples to log are selected.

It is larger than any step, so that this seed never equals that of a minibatch shuffle, (seed, step, epoch).
"""

FILL_STREAM = 10**9 + 2
"""The same of the order in which groups fill the update when a step samples more than ``ppo.batch_size``."""

NEEDS_OLD = (
    "rollout/logprob_gap_mean",
    "rollout/logprob_gap_max",
    "rollout/importance_weight_mean",
    "rollout/importance_weight_max",
    "objective/logratio_abs_mean",
    "histogram/log_ratio_to_engine",
)
"""What is unknown until the update where it computes log π_old; the engine's log-probabilities stand in for it."""

FILLED = "rollout/filled_fraction"

MOST_NAMED = 6
"""Largest number of samples that a message names."""


@dataclass(frozen=True, kw_only=True)
class BatchReport(StepReport):
    """Report on a batch: also a few samples as text, the algorithm's next state, and histograms every
    ``tracking.histogram_every`` steps."""

    samples: tuple[SampleRow, ...]
    state: AlgorithmState
    histograms: Histograms = field(default_factory=dict)

    @property
    def is_full(self) -> bool:
        """Whether no response of the update is of a group of equal scores that ``drop_uniform_groups`` leaves out."""
        return self.metrics.get(FILLED, 1.0) == 1.0


@dataclass(frozen=True, kw_only=True)
class ResultSpec:
    """Describes a result that every block needs."""

    kind: str
    """Kind of the result: ``score``, ``old_logprobs``, ``ref_logprobs`` or ``values``."""
    name: str = ""
    """Name of the part of the reward, for a score; empty for the other kinds."""


@dataclass(frozen=True, kw_only=True)
class ScoredUnit:
    """A unit of blocks that one scorer has scored; its samples are those of its blocks, one block after another."""

    scorer: int
    """Index of the scorer, and of its ``ResultSpec``."""
    blocks: tuple[int, ...]
    """Indices of the blocks."""
    parts: int
    """Number of partial results, one of each rank that the unit was sent to."""


@dataclass(frozen=True, kw_only=True)
class StepInputs:
    """Context of the step to assemble."""

    recipe: Recipe
    tokenizer_folder: str
    step: int
    state: AlgorithmState
    result_specs: tuple[ResultSpec, ...]
    """Results that each block needs, one from each scorer."""
    rounds: int = 1
    """Rounds of sampling so far in this step."""


def assemble(
    batch: StepInputs, units: Sequence[ScoredUnit], values: Sequence[RolloutBlock | BlockResult]
) -> tuple[Experience, BatchReport]:
    """Join blocks and partial results in a fixed order of samples, and compute rewards and advantages over the batch.

    Args:
        values: all blocks, followed by the partial results of all units, in the order of ``units``.

    Raises:
        MachineryError: samples are missing or duplicated, or a number is NaN or infinite.
    """
    scored = _sorted(_join(batch, units, values))
    _check_complete(scored.rollouts, batch.recipe.ppo, batch.step, batch.rounds)
    sources = batch.recipe.rewards
    raw = total_score(scored.scores, {name: source.weight for name, source in sources.items()}, scored.dropped)
    algorithm, longest = batch.recipe.algorithm, batch.recipe.rollout.max_response_length
    experience, state = build_experience(scored, raw, algorithm, batch.state, longest)
    metrics = experience_metrics(experience, raw, batch.step) | _parts_metrics(scored)
    is_due = batch.step % batch.recipe.tracking.histogram_every == 0
    histograms = dict(experience_histograms(experience)) if is_due else {}
    if algorithm.old_logprobs == "update":
        for name in NEEDS_OLD:
            metrics.pop(name, None)
            histograms.pop(name, None)
    report = BatchReport(metrics=metrics, samples=_sample_rows(batch, experience), state=state, histograms=histograms)
    if not algorithm.drop_uniform_groups:
        return experience, report
    order = np.random.default_rng([batch.recipe.seed, FILL_STREAM, batch.step])
    trained, uniform, filled = drop_uniform_groups(experience, batch.recipe.ppo.batch_size, order)
    sampled = {"rollout/uniform_fraction": uniform, FILLED: filled, "rollout/sampling_rounds": float(batch.rounds)}
    return trained, report.with_metrics(sampled)


def _join(batch: StepInputs, units: Sequence[ScoredUnit], values: Sequence[RolloutBlock | BlockResult]) -> Scored:
    """Join blocks in the given order, and put every partial result beside its samples."""
    count = len(values) - sum(unit.parts for unit in units)
    blocks = cast(Sequence[RolloutBlock], values[:count])
    rollouts, parts = RolloutBlock.concatenate(blocks), _parts_by_scorer(blocks, units, values[count:])
    scores: dict[str, Float32] = {}
    tokens: dict[str, Float32 | None] = {"values": None, "old_logprobs": rollouts.logprobs}
    for scorer, result_spec in enumerate(batch.result_specs):
        if result_spec.kind == "score":
            scores[result_spec.name] = join_samples(parts[scorer], len(rollouts))
        else:
            tokens[result_spec.kind] = join_tokens(parts[scorer], rollouts.sequences)
    dropped = rollouts.set_aside.copy()
    for name, source in batch.recipe.rewards.items():
        if source.endpoint is not None and source.endpoint.on_failure == "drop":
            dropped |= np.isnan(scores[name])
    return Scored(rollouts=rollouts, scores=scores, dropped=dropped, **tokens)  # type: ignore[arg-type]


def _parts_by_scorer(
    blocks: Sequence[RolloutBlock], units: Sequence[ScoredUnit], results: Sequence[Any]
) -> defaultdict[int, list[BlockResult]]:
    """Partial results by scorer; their ``samples`` become indices into all blocks, instead of those of their unit."""
    sizes = np.array([len(block) for block in blocks])
    begins, remaining = exclusive_sum(sizes), iter(results)
    parts: defaultdict[int, list[BlockResult]] = defaultdict(list)
    for unit in units:
        members = list(unit.blocks)
        samples = packed_index(begins[members], sizes[members])
        parts[unit.scorer] += [
            replace(result, samples=samples[result.samples]) for result in islice(remaining, unit.parts)
        ]
    return parts


def _sorted(scored: Scored) -> Scored:
    """Sort samples by prompt and seed, so that the result does not depend on the order of completion."""
    rollouts = scored.rollouts
    order = np.lexsort((rollouts.seeds, rollouts.prompt_ids))
    tokens = token_index(rollouts.sequences, order)
    return Scored(
        rollouts=rollouts.select(order),
        scores={name: score[order] for name, score in scored.scores.items()},
        dropped=scored.dropped[order],
        old_logprobs=scored.old_logprobs[tokens],
        ref_logprobs=scored.ref_logprobs[tokens],
        values=None if scored.values is None else scored.values[tokens],
    )


def _check_complete(rollouts: RolloutBlock, config: PPOConfig, step: int, rounds: int) -> None:
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
    if faults or len(rollouts) != rounds * config.rollouts_per_step:
        size = "ppo.batch_size" if config.oversampling == 1 else "ppo.batch_size * ppo.oversampling"
        size += f" * {rounds} rounds" if rounds > 1 else ""
        count = f"step {step} has {len(rollouts)} samples of {size} = {rounds * config.rollouts_per_step}"
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
