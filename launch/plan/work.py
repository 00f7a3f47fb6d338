"""Batch arithmetic of a step: samples, prompts, blocks, rows and updates, from the functions that a run uses.

All lengths are the longest that the recipe allows, so rows and seconds are upper bounds.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from launch.plan.members import PlannedRole
from rlhf.batching import count_rows
from rlhf.config.schema import Recipe
from rlhf.config.stages import is_unpaired, policy_updates
from rlhf.placement.parallelism import data_parallel_size, forward_ranks, model_parallel_size


@dataclass(frozen=True, kw_only=True)
class StepWork:
    """One step of PPO, or one update of another stage."""

    samples: int
    prompts: int
    prompt_tokens: int
    """Tokens of the longest prompt."""
    response_tokens: int
    """Tokens of the longest response."""
    blocks: int
    """Number of blocks in which rollouts are scored; 0 outside PPO."""
    updates: int
    """Optimizer updates per step."""
    samples_per_update: int
    total_updates: int | None
    """The policy's updates in the whole run; None if they depend on the number of rows."""
    score_passes: dict[str, int]
    """Role → passes without gradients per rank and step."""
    update_passes: dict[str, int]
    """Role → micro-batches per rank and update."""

    @property
    def length(self) -> int:
        """Tokens of the longest sequence."""
        return self.prompt_tokens + self.response_tokens


def batch_of(recipe: Recipe, stage: str, found: tuple[PlannedRole, ...]) -> StepWork:
    """Compute the batch arithmetic of a stage with these roles."""
    return _ppo(recipe, found) if stage == "ppo" else _supervised(recipe, stage, found)


def longest(recipe: Recipe, stage: str) -> tuple[int, int]:
    """Tokens of the longest prompt and the longest response of a stage."""
    response = recipe.rollout.max_response_length if stage == "ppo" else recipe.data.max_response_length
    return recipe.data.max_prompt_length, response


def row_tokens(recipe: Recipe, stage: str, member: PlannedRole) -> int:
    """Tokens of the longest row: the budget, or a longer sequence (for comparisons, a pair)."""
    sequences = _answers(recipe, stage) if stage != "ppo" else 1
    return max(member.config.micro_batch_tokens, sequences * sum(longest(recipe, stage)))


def passes(samples: int, length: int, member: PlannedRole) -> int:
    """Rows on each rank, or on its sequence-parallel group, for this many samples of equal length."""
    return count_rows(samples, length, data_parallel_size(member.config), member.config.micro_batch_tokens)


def score_passes(blocks: int, size: int, length: int, member: PlannedRole) -> int:
    """Rows on each rank when blocks of ``size`` samples are scored in units, as many as fill the rows of a unit's ranks
    (``ScoringMethod`` in ``actors/scoring.py``)."""
    config = member.config
    ranks = forward_ranks(config)
    parts, sets = ranks // model_parallel_size(config), config.ranks // ranks
    together = min(blocks, max(1, parts * config.micro_batch_tokens // (size * length)))
    rows = count_rows(together * size, length, parts, config.micro_batch_tokens)
    return math.ceil(math.ceil(blocks / together) / sets) * rows


def _ppo(recipe: Recipe, found: tuple[PlannedRole, ...]) -> StepWork:
    ppo, algorithm = recipe.ppo, recipe.algorithm
    prompt, response = longest(recipe, "ppo")
    size = min(recipe.rollout.block_size, math.ceil(ppo.rollouts_per_step / recipe.rollout.engines))
    blocks, one = math.ceil(ppo.rollouts_per_step / size), ppo.batch_size // algorithm.minibatches
    return StepWork(
        samples=ppo.rollouts_per_step,
        prompts=ppo.rollouts_per_step // ppo.samples_per_prompt,
        prompt_tokens=prompt,
        response_tokens=response,
        blocks=blocks,
        updates=algorithm.epochs * algorithm.minibatches,
        samples_per_update=one,
        total_updates=policy_updates(recipe),
        score_passes={
            m.role: score_passes(blocks, size, prompt + response, m)
            for m in found
            if m.role != "policy" or algorithm.old_logprobs == "scoring" or not recipe.has_reference
        },
        update_passes={m.role: passes(one, prompt + response, m) for m in found if m.trained},
    )


def _answers(recipe: Recipe, stage: str) -> int:
    """Sequences of one row of a supervised stage: both answers of a comparison."""
    return 1 if stage == "sft" or is_unpaired(recipe, stage) else 2


def _supervised(recipe: Recipe, stage: str, found: tuple[PlannedRole, ...]) -> StepWork:
    size = {"sft": recipe.sft.batch_size, "reward": recipe.reward.batch_size, "dpo": recipe.dpo.batch_size}[stage]
    prompt, response = longest(recipe, stage)
    answers = _answers(recipe, stage)
    rows = {m.role: passes(size, answers * (prompt + response), m) for m in found}
    return StepWork(
        samples=answers * size,
        prompts=size,
        prompt_tokens=prompt,
        response_tokens=response,
        blocks=0,
        updates=1,
        samples_per_update=answers * size,
        total_updates=None,
        score_passes={},
        update_passes=rows,
    )
