"""The stages of a command, the settings that each depends on, and their numbers of optimizer updates."""

from __future__ import annotations

from collections.abc import Mapping

from rlhf.config.schema import OptimizerConfig, Recipe, Stage
from rlhf.errors import UserError

DEPENDS_ON: Mapping[str, tuple[str, ...]] = {
    "sft": ("seed", "model", "data", "sft"),
    "reward": ("seed", "model", "data", "sft", "reward"),
    "dpo": ("seed", "model", "data", "sft", "dpo"),
    "ppo": (
        "seed",
        "deterministic",
        "model",
        "data",
        "sft",
        "reward",
        "rewards",
        "ppo",
        "algorithm",
        "early_stop",
        "rollout",
    ),
}
"""Sections of the recipe that a stage's result depends on; changes in other sections keep a finished stage valid."""
MEMORY_KEYS = (
    "model.gradient_checkpointing",
    *("rollout.gpu_memory_fraction", "rollout.memory_gib", "rollout.tensor_parallel", "rollout.enforce_eager"),
    *("rollout.max_num_seqs", "rollout.max_num_batched_tokens"),
)
"""Keys in these sections that change memory and speed, but results only by rounding: a run that ran out of memory
resumes with other values."""


def stages_of(recipe: Recipe, stage: Stage) -> tuple[str, ...]:
    """The stages of a command: a pipeline runs all three, except those whose result the recipe names."""
    if stage != "pipeline":
        return (stage,)
    given = {
        "sft": recipe.ppo.policy_init is not None,
        "reward": not recipe.trains_reward,
        "ppo": False,
    }
    return tuple(name for name, is_given in given.items() if not is_given)


def is_unpaired(recipe: Recipe, stage: str) -> bool:
    """Whether a stage trains on single answers that people found good or bad, instead of on comparisons."""
    return (stage == "reward" and recipe.reward.loss == "pointwise") or (stage == "dpo" and recipe.dpo.loss == "kto")


def critic_updates(recipe: Recipe) -> int:
    """Optimizer updates of the critic in a PPO run."""
    return recipe.ppo.steps * recipe.algorithm.epochs * recipe.algorithm.minibatches


def policy_updates(recipe: Recipe) -> int:
    """Optimizer updates of the policy in a PPO run; during the critic's warm-up there are none."""
    learning_steps = recipe.ppo.steps - recipe.algorithm.critic_warmup_steps
    return learning_steps * recipe.algorithm.epochs * recipe.algorithm.minibatches


def check_schedule(optimizer: OptimizerConfig, total_updates: int, key: str) -> None:
    """Check that the warm-up is shorter than the run, so that the peak rate is reached.

    Args:
        optimizer: the schedule.
        total_updates: optimizer updates of the whole run.
        key: dotted key of the optimizer, for the message.

    Raises:
        UserError: it is not.
    """
    if optimizer.warmup_steps >= total_updates:
        raise UserError(
            f"{key}.warmup_steps = {optimizer.warmup_steps} is not shorter than the run of {total_updates} updates",
            "the learning rate would not reach its peak",
            f"{key}.warmup_steps={total_updates // 10}, or train for longer",
        )
