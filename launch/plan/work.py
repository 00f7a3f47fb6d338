"""The batch arithmetic of a step: samples, prompts, blocks, rows and updates, by the same functions that plan a run.

All lengths are the longest that the recipe allows, so that rows and seconds are upper bounds.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from launch.plan.members import PlannedRole
from rlhf.batching import plan
from rlhf.config.schema import Recipe
from rlhf.config.stages import policy_updates
from rlhf.placement.shared_rows import groups


@dataclass(frozen=True, kw_only=True)
class StepWork:
    """One step of PPO, or one update of another stage."""

    samples: int
    prompts: int
    prompt_tokens: int
    """Of the longest prompt."""
    response_tokens: int
    """Of the longest response."""
    blocks: int
    """Portions in which rollouts are scored; 0 outside PPO."""
    updates: int
    """Optimizer updates in a step."""
    samples_per_update: int
    total_updates: int | None
    """Of the policy in the whole run; ``None`` where they depend on the number of rows."""
    score_passes: dict[str, int]
    """Role → passes without gradients on each rank in a step."""
    update_passes: dict[str, int]
    """Role → micro-batches on each rank in an update."""

    @property
    def length(self) -> int:
        """Tokens of the longest sequence."""
        return self.prompt_tokens + self.response_tokens


def batch_of(recipe: Recipe, stage: str, found: tuple[PlannedRole, ...]) -> StepWork:
    """The arithmetic of a stage with these roles."""
    return _ppo(recipe, found) if stage == "ppo" else _supervised(recipe, stage, found)


def longest(recipe: Recipe, stage: str) -> tuple[int, int]:
    """Tokens of the longest prompt and of the longest response of a stage."""
    response = recipe.rollout.max_response_length if stage == "ppo" else recipe.data.max_response_length
    return recipe.data.max_prompt_length, response


def row_tokens(recipe: Recipe, stage: str, member: PlannedRole) -> int:
    """Tokens of the longest row: the budget, or a sequence (in comparisons a pair) that exceeds it."""
    sequences = 2 if stage in ("reward", "dpo") else 1
    return max(member.config.micro_batch_tokens, sequences * sum(longest(recipe, stage)))


def passes(samples: int, length: int, member: PlannedRole) -> int:
    """Rows on each rank, of its own or shared, for so many samples of equal length."""
    return len(plan(range(samples), [length] * samples, groups(member.config), member.config.micro_batch_tokens)[0])


def _ppo(recipe: Recipe, found: tuple[PlannedRole, ...]) -> StepWork:
    ppo, algorithm = recipe.ppo, recipe.algorithm
    prompt, response = longest(recipe, "ppo")
    size = min(recipe.rollout.block_size, math.ceil(ppo.batch_size / recipe.rollout.engines))
    blocks, one = math.ceil(ppo.batch_size / size), ppo.batch_size // algorithm.minibatches
    return StepWork(
        samples=ppo.batch_size,
        prompts=ppo.batch_size // ppo.samples_per_prompt,
        prompt_tokens=prompt,
        response_tokens=response,
        blocks=blocks,
        updates=algorithm.epochs * algorithm.minibatches,
        samples_per_update=one,
        total_updates=policy_updates(recipe),
        score_passes={m.role: blocks * passes(size, prompt + response, m) for m in found},
        update_passes={m.role: passes(one, prompt + response, m) for m in found if m.trained},
    )


def _supervised(recipe: Recipe, stage: str, found: tuple[PlannedRole, ...]) -> StepWork:
    size = {"sft": recipe.sft.batch_size, "reward": recipe.reward.batch_size, "dpo": recipe.dpo.batch_size}[stage]
    prompt, response = longest(recipe, stage)
    answers = 1 if stage == "sft" else 2
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
