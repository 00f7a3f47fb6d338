"""Refuse pairs of algorithm options that cannot work together: an option that could never act, or that undoes another.

What is merely unusual is let through.
"""

from __future__ import annotations

from collections.abc import Iterator

from rlhf.config.schema import AlgorithmConfig, Recipe
from rlhf.errors import UserError

COMPARES_A_GROUP = ("grpo", "dr_grpo", "rloo", "reinforce++_baseline")
"""Algorithms whose baseline is the other responses to the same prompt."""

CRITIC_OPTIONS = ("gamma", "lam", "value_clip_range", "critic_warmup_steps")
"""Options of the algorithm that only a critic's advantages or updates use."""


def check_algorithm(recipe: Recipe) -> Iterator[UserError]:
    """One error for each pair of options of the PPO stage that cannot work together."""
    for rule in (_group, _critic, _biases, _kl, _missing_eos, _dual_clip, _importance, _target_kl, _early_stop):
        yield from rule(recipe)


def _group(recipe: Recipe) -> Iterator[UserError]:
    name, samples = recipe.algorithm.name, recipe.ppo.samples_per_prompt
    if name in COMPARES_A_GROUP and samples < 2:
        yield UserError(
            f"algorithm.name = {name} with ppo.samples_per_prompt = {samples}",
            "a response is compared with the others to its prompt, and there are none: only itself",
            "ppo.samples_per_prompt=8, or algorithm.name=reinforce++, which compares over the whole batch",
        )


def _critic(recipe: Recipe) -> Iterator[UserError]:
    algorithm, default = recipe.algorithm, AlgorithmConfig()
    if algorithm.has_critic:
        return
    values = {key: getattr(algorithm, key) for key in CRITIC_OPTIONS}
    given = {f"algorithm.{key}": value for key, value in values.items() if value != getattr(default, key)}
    if recipe.ppo.critic_init is not None:
        given["ppo.critic_init"] = recipe.ppo.critic_init
    if given:
        shown = (f"{key} = {'null' if value is None else value}" for key, value in given.items())
        yield UserError(
            f"{', '.join(shown)}: {algorithm.name} has no critic",
            "they shape the critic's values and the advantages made from them, and would do nothing",
            f"leave out {', '.join(given)}, or algorithm.name=ppo",
        )


def _biases(recipe: Recipe) -> Iterator[UserError]:
    algorithm = recipe.algorithm
    if algorithm.name != "dr_grpo":
        return
    if algorithm.whiten_advantages:
        yield UserError(
            "algorithm.whiten_advantages = true with algorithm.name = dr_grpo",
            "dr_grpo exists to leave the division by a standard deviation out",
            "leave out algorithm.whiten_advantages, or use grpo: algorithm.name=grpo",
        )
    if algorithm.loss_mean == "sequence":
        yield UserError(
            "algorithm.loss_mean = sequence with algorithm.name = dr_grpo",
            "dr_grpo exists to leave the division by each response's length out",
            "leave out algorithm.loss_mean, or use grpo: algorithm.name=grpo",
        )


def _kl(recipe: Recipe) -> Iterator[UserError]:
    algorithm, cap = recipe.algorithm, recipe.canaries.max_kl
    if algorithm.adaptive_kl is None:
        return
    if algorithm.kl_coef == 0:
        yield UserError(
            "algorithm.adaptive_kl with algorithm.kl_coef = 0",
            "each step multiplies β by a factor, and 0 stays 0",
            "algorithm.kl_coef=0.05 to start from, or algorithm.adaptive_kl=null for no KL at all",
        )
    if algorithm.adaptive_kl.horizon < recipe.ppo.batch_size:
        yield UserError(
            f"algorithm.adaptive_kl.horizon = {algorithm.adaptive_kl.horizon} is less than ppo.batch_size = "
            f"{recipe.ppo.batch_size}",
            "one step would change β by more than a fifth, and a short horizon even turn its sign",
            "algorithm.adaptive_kl.horizon=10000",
        )
    target = algorithm.adaptive_kl.target
    if cap is not None and target >= cap:
        yield UserError(
            f"algorithm.adaptive_kl.target = {target} is not below canaries.max_kl = {cap}",
            "β would steer the KL to where the canary stops the run",
            f"canaries.max_kl={2 * target:g}, or a lower target",
        )


def _missing_eos(recipe: Recipe) -> Iterator[UserError]:
    algorithm = recipe.algorithm
    if algorithm.missing_eos == "subtract" and algorithm.missing_eos_penalty is None:
        yield UserError(
            "algorithm.missing_eos = subtract with algorithm.missing_eos_penalty = null",
            "there is nothing to take off the score",
            "algorithm.missing_eos_penalty=1.0, or leave out algorithm.missing_eos",
        )


def _dual_clip(recipe: Recipe) -> Iterator[UserError]:
    algorithm = recipe.algorithm
    edge = 1 + algorithm.clip_high
    if algorithm.dual_clip is not None and algorithm.dual_clip < edge:
        key = "clip_range" if algorithm.clip_range_high is None else "clip_range_high"
        yield UserError(
            f"algorithm.dual_clip = {algorithm.dual_clip} is less than 1 + algorithm.{key} = {edge:g}",
            "for a negative advantage the loss is |Â|ρ from 1 − ε upwards, held at |Â|c: with c < 1 + ε a token would "
            "lose its gradient at ratios ρ from c to 1 + ε, which the clip range allows",
            f"algorithm.dual_clip=3.0, or at least {edge:g}",
        )


def _importance(recipe: Recipe) -> Iterator[UserError]:
    algorithm = recipe.algorithm
    if algorithm.importance_sampling == "none" and algorithm.importance_cap != AlgorithmConfig().importance_cap:
        yield UserError(
            f"algorithm.importance_cap = {algorithm.importance_cap} with algorithm.importance_sampling = none",
            "without importance weights there is nothing to cut off",
            "leave out algorithm.importance_cap, or algorithm.importance_sampling=token_truncate",
        )
    if algorithm.importance_sampling == "none" and recipe.ppo.staleness:
        yield UserError(
            f"ppo.staleness = {recipe.ppo.staleness} with algorithm.importance_sampling = none",
            "rollouts of older weights are not samples of the policy, and nothing would correct for that",
            "leave out algorithm.importance_sampling, or ppo.staleness=0",
        )


def _target_kl(recipe: Recipe) -> Iterator[UserError]:
    algorithm = recipe.algorithm
    if algorithm.target_kl is not None and algorithm.epochs * algorithm.minibatches == 1:
        yield UserError(
            f"algorithm.target_kl = {algorithm.target_kl} with a single update per step",
            "it ends a step's further updates, and there are none",
            "leave out algorithm.target_kl, or raise algorithm.epochs or algorithm.minibatches",
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
    if watch.scorer.weight == 0:
        yield UserError("early_stop.scorer.weight = 0", "every score would be 0", "leave it out")
    if recipe.data.held_out_fraction == 0:
        yield UserError(
            "early_stop with data.held_out_fraction = 0",
            "it judges answers to prompts that are kept out of training, and there are none",
            "data.held_out_fraction=0.1, or early_stop=null",
        )
