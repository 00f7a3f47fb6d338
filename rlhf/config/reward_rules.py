"""What the parts of PPO's score, and the scorer that stops it early, must be before anything starts."""

from __future__ import annotations

import re
from collections.abc import Iterator
from urllib.parse import urlsplit

from rlhf.config.named_files import check_path, check_scorer
from rlhf.config.schema import TRAINED, EndpointConfig, Recipe, RewardSourceConfig
from rlhf.errors import UserError
from rlhf.secrets import without_secrets

KINDS = ("model", "function", "endpoint")
PART_NAME = re.compile(r"[A-Za-z0-9_-]{1,60}")
EXAMPLE = "rewards: {model: {model: trained}} in the recipe is the run's own reward model"


def check_rewards(recipe: Recipe) -> Iterator[UserError]:
    """Each part is one of its kinds and can exist; together they can teach; who stops the run is not among them."""
    if not recipe.rewards:
        yield UserError("rewards has no part", "PPO's score is the weighted sum of its parts", EXAMPLE)
    elif not any(source.weight for source in recipe.rewards.values()):
        weights = ", ".join(f"rewards.{name}.weight" for name in recipe.rewards)
        yield UserError(
            f"{weights}: all are 0", "every score would be 0, and nothing could be learned from it", EXAMPLE
        )
    for name, source in recipe.rewards.items():
        yield from _name(name)
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


def _name(name: str) -> Iterator[UserError]:
    if not PART_NAME.fullmatch(name):
        yield UserError(
            f"rewards has a part named {name!r}",
            "the name becomes that of a metric and of a log file",
            "use up to 60 letters, digits, dashes and underscores",
        )


def _source(recipe: Recipe, key: str, source: RewardSourceConfig) -> Iterator[UserError]:
    given = [kind for kind in KINDS if getattr(source, kind) is not None]
    if len(given) != 1:
        yield UserError(
            f"{key} has {' and '.join(given) or 'none'} of {', '.join(KINDS)}",
            "a part of the reward is exactly one of them",
            f"keep one; a second one is a part of its own under another name, and {key}.<kind>=null leaves one out"
            if given
            else f"{key}.function=file.py:function, {key}.model=<folder, or {TRAINED}>, or {key}.endpoint.url=http://...",
        )
    if source.model not in (None, TRAINED):
        yield from check_path(f"{key}.model", source.model)
    for name in ("label", "max_length"):
        if getattr(source, name) is not None and (source.model is None or (name, source.model) == ("label", TRAINED)):
            yield UserError(
                f"{key}.{name} = {getattr(source, name)!r} and no model folder"
                if source.model is None
                else f"{key}.label = {source.label!r} and {key}.model = {TRAINED!r}",
                "it is about a model that is read" if source.model is None else "the run's reward model has one label",
                f"leave out {key}.{name}",
            )
    if source.function is not None:
        yield from check_scorer(f"{key}.function", source.function)
    if source.endpoint is not None:
        yield from _endpoint(recipe, f"{key}.endpoint", source.endpoint)


def _endpoint(recipe: Recipe, key: str, endpoint: EndpointConfig) -> Iterator[UserError]:
    shown = without_secrets(endpoint.url)
    if not _is_http(endpoint.url):
        yield UserError(
            f"{key}.url = {shown!r} is no address of a service",
            "scores are asked for by HTTP",
            f"{key}.url=http://127.0.0.1:8000/score, or https://...",
        )
    if shown != endpoint.url:
        yield UserError(
            f"{key}.url = {shown!r} holds a password or token (shown as ***)",
            "the whole recipe is written into the run's folder",
            "set it in the environment variable RLHF_REWARD_TOKEN, which is sent as `Authorization: Bearer`",
        )
    longest = recipe.placement.phase_timeout_seconds
    if endpoint.timeout_seconds >= longest:
        yield UserError(
            f"{key}.timeout_seconds = {endpoint.timeout_seconds:g} is not under placement.phase_timeout_seconds = "
            f"{longest:g}",
            "the run would end before the request is late",
            f"{key}.timeout_seconds=30, or a longer placement.phase_timeout_seconds",
        )


def _is_http(url: str) -> bool:
    import httpx

    try:
        parts = urlsplit(url)
        port = parts.port  # raises where it is no number up to 65535
        httpx.URL(url)  # who will ask has rules of its own
    except (ValueError, httpx.InvalidURL):
        return False
    return parts.scheme in ("http", "https") and bool(parts.hostname) and port != 0 and url.isascii() and " " not in url


def _held_out(recipe: Recipe, scorer: RewardSourceConfig) -> Iterator[UserError]:
    who = (scorer.model, scorer.function, scorer.endpoint and scorer.endpoint.url)
    for name, part in recipe.rewards.items():
        if any(who) and part.weight and who == (part.model, part.function, part.endpoint and part.endpoint.url):
            yield UserError(
                f"early_stop.scorer is the same as rewards.{name}",
                "what the policy is trained on cannot tell that it is over-optimised: a held-out scorer is another one",
                "name a reward model trained on other comparisons, a function or a service that is not in rewards",
            )
