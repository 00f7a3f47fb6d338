"""Rules between sections of a PPO recipe: options that cannot work together, and the parts of the reward.

Options that are only unusual pass. Rules within the ``algorithm`` section alone are in the schema.
"""

from __future__ import annotations

from collections.abc import Iterator

from rlhf.config.named_files import check_path, check_scorer, check_secret
from rlhf.config.schema import COMPARES_A_GROUP, TRAINED, Recipe, RewardSourceConfig
from rlhf.errors import UserError

EXAMPLE = "rewards: {model: {model: trained}} in the recipe is the run's own reward model"


def check_algorithm(recipe: Recipe) -> Iterator[UserError]:
    """One error for each pair of options of the PPO stage that cannot work together."""
    algorithm, ppo = recipe.algorithm, recipe.ppo
    if algorithm.name in COMPARES_A_GROUP and ppo.samples_per_prompt < 2:
        yield UserError(
            f"algorithm.name = {algorithm.name} with ppo.samples_per_prompt = {ppo.samples_per_prompt}",
            "a response is compared with the other responses to its prompt, and there are none",
            "ppo.samples_per_prompt=8, or algorithm.name=reinforce++, which compares over the whole batch",
        )
    if ppo.critic_init is not None and not algorithm.has_critic:
        yield UserError(
            f"ppo.critic_init = {ppo.critic_init}: {algorithm.name} has no critic",
            "no model would be initialised from it",
            "ppo.critic_init=null, or algorithm.name=ppo",
        )
    if ppo.staleness and algorithm.importance_sampling == "none":
        yield UserError(
            f"ppo.staleness = {ppo.staleness} with algorithm.importance_sampling = none",
            "rollouts by older weights are not samples of the policy, and need a correction",
            "algorithm.importance_sampling=token_truncate, or ppo.staleness=0",
        )
    if ppo.oversampling > 1 and not algorithm.drop_uniform_groups:
        yield UserError(
            f"ppo.oversampling = {ppo.oversampling} with algorithm.drop_uniform_groups = false",
            "responses beyond ppo.batch_size only replace those of groups with equal scores",
            "algorithm.name=dapo or algorithm.drop_uniform_groups=true, or ppo.oversampling=1",
        )
    if ppo.sampling_rounds > 1 and not algorithm.drop_uniform_groups:
        yield UserError(
            f"ppo.sampling_rounds = {ppo.sampling_rounds} with algorithm.drop_uniform_groups = false",
            "further rounds only replace the responses of groups with equal scores",
            "algorithm.name=dapo or algorithm.drop_uniform_groups=true, or ppo.sampling_rounds=1",
        )
    if ppo.sampling_rounds > 1 and ppo.staleness:
        yield UserError(
            f"ppo.sampling_rounds = {ppo.sampling_rounds} with ppo.staleness = {ppo.staleness}",
            "the next step's prompts are known only after the last round, and generation could not run ahead",
            f"ppo.oversampling={ppo.sampling_rounds} samples as much in one round; or ppo.staleness=0",
        )
    buffer, longest = algorithm.overlong_buffer, recipe.rollout.max_response_length
    if buffer is not None and buffer >= longest:
        yield UserError(
            f"algorithm.overlong_buffer = {buffer} is not below rollout.max_response_length = {longest}",
            "every response would be punished for its length",
            f"algorithm.overlong_buffer={max(1, longest // 5)}, a fifth as in the paper, or a longer response",
        )
    yield from _adaptive_kl(recipe)
    yield from _early_stop(recipe)


def _adaptive_kl(recipe: Recipe) -> Iterator[UserError]:
    adaptive, cap = recipe.algorithm.adaptive_kl, recipe.canaries.max_kl
    if adaptive is None:
        return
    most = recipe.ppo.rollouts_per_step * recipe.ppo.sampling_rounds
    if adaptive.horizon < most:
        factors = [key for key in ("oversampling", "sampling_rounds") if getattr(recipe.ppo, key) > 1]
        size = " * ".join(f"ppo.{key}" for key in ("batch_size", *factors))
        yield UserError(
            f"algorithm.adaptive_kl.horizon = {adaptive.horizon} is less than {size} = {most}",
            "one step could change β by more than a fifth, or even change its sign",
            "algorithm.adaptive_kl.horizon=10000",
        )
    if cap is not None and adaptive.target >= cap:
        yield UserError(
            f"algorithm.adaptive_kl.target = {adaptive.target} is not below canaries.max_kl = {cap}",
            "β would drive the KL to a value at which the canary stops the run",
            f"canaries.max_kl={2 * adaptive.target:g}, or a lower target",
        )


def _early_stop(recipe: Recipe) -> Iterator[UserError]:
    watch, steps = recipe.early_stop, recipe.ppo.steps
    if watch is None:
        return
    evaluations = (steps - 1) // watch.every  # before the last step
    if evaluations < watch.patience:
        yield UserError(
            f"early_stop.patience = {watch.patience} with {evaluations} evaluations before the last of {steps} steps",
            "the run could never stop early",
            f"early_stop.every={max(1, (steps - 1) // (watch.patience + 1))} or less, or early_stop=null",
        )
    if recipe.data.held_out_fraction == 0:
        yield UserError(
            "early_stop with data.held_out_fraction = 0",
            "the held-out scorer needs prompts that are held out of training, and there are none",
            "data.held_out_fraction=0.1, or early_stop=null",
        )


def check_rewards(recipe: Recipe) -> Iterator[UserError]:
    """Errors in the parts of the reward, or in the held-out scorer of ``early_stop``."""
    if not recipe.rewards:
        yield UserError("rewards has no part", "PPO's score is the weighted sum of its parts", EXAMPLE)
    elif not any(source.weight for source in recipe.rewards.values()):
        weights = ", ".join(f"rewards.{name}.weight" for name in recipe.rewards)
        yield UserError(f"{weights}: all are 0", "every score would be 0", EXAMPLE)
    for name, source in recipe.rewards.items():
        yield from _source(recipe, f"rewards.{name}", source)
    trained = [f"rewards.{name}.model" for name, source in recipe.rewards.items() if source.model == TRAINED]
    if len(trained) > 1:
        yield UserError(
            f"{' and '.join(trained)} are all {TRAINED!r}",
            "a run trains one reward model",
            "keep one of them, with the sum of the weights, or set the others to a model folder",
        )
    if recipe.early_stop is not None:
        yield from _source(recipe, "early_stop.scorer", recipe.early_stop.scorer)
        yield from _held_out(recipe, recipe.early_stop.scorer)


def _source(recipe: Recipe, key: str, source: RewardSourceConfig) -> Iterator[UserError]:
    if source.model not in (None, TRAINED):
        yield from check_path(f"{key}.model", source.model)
    if source.function is not None:
        yield from check_scorer(f"{key}.function", source.function)
    if source.endpoint is None:
        return
    how = "set it in the environment variable RLHF_REWARD_TOKEN, which is sent as `Authorization: Bearer`"
    yield from check_secret(f"{key}.endpoint.url", source.endpoint.url, how)
    seconds, longest = source.endpoint.timeout_seconds, recipe.placement.phase_timeout_seconds
    if seconds >= longest:
        yield UserError(
            f"{key}.endpoint.timeout_seconds = {seconds:g} is not under placement.phase_timeout_seconds = {longest:g}",
            "the run would end before the request times out",
            f"{key}.endpoint.timeout_seconds=30, or a longer placement.phase_timeout_seconds",
        )


def _held_out(recipe: Recipe, scorer: RewardSourceConfig) -> Iterator[UserError]:
    who = (scorer.model, scorer.function, scorer.endpoint and scorer.endpoint.url)
    for name, part in recipe.rewards.items():
        if any(who) and part.weight and who == (part.model, part.function, part.endpoint and part.endpoint.url):
            yield UserError(
                f"early_stop.scorer is the same as rewards.{name}",
                "over-optimisation can only be detected by a scorer that the policy is not trained on",
                "name a reward model trained on other comparisons, a function or a service that is not in rewards",
            )
