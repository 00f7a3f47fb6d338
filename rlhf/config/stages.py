"""The stages that a command runs, and how many optimizer updates they make."""

from __future__ import annotations

from rlhf.config.schema import OptimizerConfig, Recipe, Stage
from rlhf.errors import UserError


def stages_of(recipe: Recipe, stage: Stage) -> tuple[str, ...]:
    """The stages that a command runs: a pipeline runs all three, but for those whose model or function is given."""
    if stage != "pipeline":
        return (stage,)
    given = {
        "sft": recipe.ppo.policy_init is not None,
        "reward": not recipe.trains_reward,
        "ppo": False,
    }
    return tuple(name for name, is_given in given.items() if not is_given)


def critic_updates(recipe: Recipe) -> int:
    """Optimizer updates of the critic in a PPO run."""
    return recipe.ppo.steps * recipe.algorithm.epochs * recipe.algorithm.minibatches


def policy_updates(recipe: Recipe) -> int:
    """Optimizer updates of the policy in a PPO run: it rests while only the critic learns."""
    learning_steps = recipe.ppo.steps - recipe.algorithm.critic_warmup_steps
    return learning_steps * recipe.algorithm.epochs * recipe.algorithm.minibatches


def check_schedule(optimizer: OptimizerConfig, total_updates: int, key: str) -> None:
    """Refuse a warm-up that the run ends in, where the peak rate would never be used.

    Args:
        optimizer: the schedule.
        total_updates: optimizer updates of the whole run.
        key: dotted key of the optimizer, for the message.
    """
    if optimizer.warmup_steps >= total_updates:
        raise UserError(
            f"{key}.warmup_steps = {optimizer.warmup_steps} is not shorter than the run of {total_updates} updates",
            "the learning rate would still be rising when the run ends",
            f"{key}.warmup_steps={total_updates // 10}, or train for longer",
        )
