"""Refuse options of PPO in several sections that cannot work together: one could never act, or undoes another.

What is merely unusual is let through. Rules of the ``algorithm`` section alone stand beside it in the schema.
"""

from __future__ import annotations

from collections.abc import Iterator

from rlhf.config.schema import Recipe
from rlhf.errors import UserError

COMPARES_A_GROUP = ("grpo", "dr_grpo", "rloo", "reinforce++_baseline")
"""Algorithms whose baseline is the other responses to the same prompt."""


def check_algorithm(recipe: Recipe) -> Iterator[UserError]:
    """One error for each pair of options of the PPO stage that cannot work together."""
    algorithm, ppo = recipe.algorithm, recipe.ppo
    if algorithm.name in COMPARES_A_GROUP and ppo.samples_per_prompt < 2:
        yield UserError(
            f"algorithm.name = {algorithm.name} with ppo.samples_per_prompt = {ppo.samples_per_prompt}",
            "a response is compared with the others to its prompt, and there are none: only itself",
            "ppo.samples_per_prompt=8, or algorithm.name=reinforce++, which compares over the whole batch",
        )
    if ppo.critic_init is not None and not algorithm.has_critic:
        yield UserError(
            f"ppo.critic_init = {ppo.critic_init}: {algorithm.name} has no critic",
            "nothing would start from it",
            "leave out ppo.critic_init, or algorithm.name=ppo",
        )
    if ppo.staleness and algorithm.importance_sampling == "none":
        yield UserError(
            f"ppo.staleness = {ppo.staleness} with algorithm.importance_sampling = none",
            "rollouts of older weights are not samples of the policy, and nothing would correct for that",
            "leave out algorithm.importance_sampling, or ppo.staleness=0",
        )
    yield from _adaptive_kl(recipe)
    yield from _early_stop(recipe)


def _adaptive_kl(recipe: Recipe) -> Iterator[UserError]:
    adaptive, cap = recipe.algorithm.adaptive_kl, recipe.canaries.max_kl
    if adaptive is None:
        return
    if adaptive.horizon < recipe.ppo.batch_size:
        yield UserError(
            f"algorithm.adaptive_kl.horizon = {adaptive.horizon} is less than ppo.batch_size = {recipe.ppo.batch_size}",
            "one step would change β by more than a fifth, and a short horizon even turn its sign",
            "algorithm.adaptive_kl.horizon=10000",
        )
    if cap is not None and adaptive.target >= cap:
        yield UserError(
            f"algorithm.adaptive_kl.target = {adaptive.target} is not below canaries.max_kl = {cap}",
            "β would steer the KL to where the canary stops the run",
            f"canaries.max_kl={2 * adaptive.target:g}, or a lower target",
        )


def _early_stop(recipe: Recipe) -> Iterator[UserError]:
    watch, steps = recipe.early_stop, recipe.ppo.steps
    if watch is None:
        return
    chances = (steps - 1) // watch.every  # judgements before the last step
    if chances < watch.patience:
        yield UserError(
            f"early_stop.patience = {watch.patience} with {chances} judgements before the last of {steps} steps",
            "the run could never stop early",
            f"early_stop.every={max(1, (steps - 1) // (watch.patience + 1))} or less, or early_stop=null",
        )
    if recipe.data.held_out_fraction == 0:
        yield UserError(
            "early_stop with data.held_out_fraction = 0",
            "it judges answers to prompts that are kept out of training, and there are none",
            "data.held_out_fraction=0.1, or early_stop=null",
        )
