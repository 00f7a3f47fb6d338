"""Rules between the parts of PPO's score, the scorer that stops it early, and files that they name."""

from __future__ import annotations

from collections.abc import Iterator

from rlhf.config.named_files import check_path, check_scorer, check_secret
from rlhf.config.schema import TRAINED, Recipe, RewardSourceConfig
from rlhf.errors import UserError

EXAMPLE = "rewards: {model: {model: trained}} in the recipe is the run's own reward model"


def check_rewards(recipe: Recipe) -> Iterator[UserError]:
    """The parts exist and have an effect together, and the scorer of ``early_stop`` is none of them."""
    if not recipe.rewards:
        yield UserError("rewards has no part", "PPO's score is the weighted sum of its parts", EXAMPLE)
    elif not any(source.weight for source in recipe.rewards.values()):
        weights = ", ".join(f"rewards.{name}.weight" for name in recipe.rewards)
        yield UserError(
            f"{weights}: all are 0", "every score would be 0, and nothing could be learned from it", EXAMPLE
        )
    for name, source in recipe.rewards.items():
        yield from _source(recipe, f"rewards.{name}", source)
    trained = [f"rewards.{name}.model" for name, source in recipe.rewards.items() if source.model == TRAINED]
    if len(trained) > 1:
        yield UserError(
            f"{' and '.join(trained)} are all {TRAINED!r}",
            "a run trains one reward model",
            "keep one of them and give it the sum of the weights, or give the others a model folder",
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
            "the run would end before the request is late",
            f"{key}.endpoint.timeout_seconds=30, or a longer placement.phase_timeout_seconds",
        )


def _held_out(recipe: Recipe, scorer: RewardSourceConfig) -> Iterator[UserError]:
    who = (scorer.model, scorer.function, scorer.endpoint and scorer.endpoint.url)
    for name, part in recipe.rewards.items():
        if any(who) and part.weight and who == (part.model, part.function, part.endpoint and part.endpoint.url):
            yield UserError(
                f"early_stop.scorer is the same as rewards.{name}",
                "what the policy is trained on cannot tell that it is over-optimised: a held-out scorer is another one",
                "name a reward model trained on other comparisons, a function or a service that is not in rewards",
            )
