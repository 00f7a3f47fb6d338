"""Which models a stage holds, of what shape, and on which GPUs each of their ranks comes to lie.

This says what ``actors/crew.py`` builds and ``actors/placement.py`` reserves, without building or reserving anything.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Literal

from rlhf.config.machine import Stage, choose_strategy, gpus_needed
from rlhf.config.schema import TRAINED, Recipe, RewardSourceConfig, RoleConfig
from rlhf.planning.cluster import Cluster
from rlhf.planning.public import find_shape
from rlhf.planning.shapes import ModelShape, scratch_shape

Head = Literal["language", "scalar"]
ENGINE = "rollout"


@dataclass(frozen=True, kw_only=True)
class Member:
    """A role of a stage: the network that each of its ranks holds a part of."""

    role: str
    """Its name: ``policy``, ``reward`` or, with the name of a reward's part, ``reward model``."""
    key: str
    """Its section of ``placement``."""
    config: RoleConfig
    shape: ModelShape
    head: Head
    trained: int
    """Parameters that are trained."""
    frozen: int
    """Parameters that are not."""

    @property
    def parameters(self) -> int:
        """All of them."""
        return self.trained + self.frozen


@dataclass(frozen=True, kw_only=True)
class Seat:
    """Where a rank of a role, or an engine, computes: GPUs of one node."""

    role: str
    rank: int
    node: int
    gpus: tuple[int, ...]


class Shapes:
    """The shapes of the models that a recipe names; each is looked for once."""

    def __init__(self, recipe: Recipe, find: Callable[[str], ModelShape] = find_shape) -> None:
        self.recipe, self.find = recipe, cache(find)

    @property
    def base(self) -> ModelShape:
        """What SFT starts from."""
        model = self.recipe.model
        if model.scratch is not None:
            return scratch_shape(model.scratch)
        assert model.path is not None
        return self.find(model.path)

    def _given(self, path: str | None, otherwise: ModelShape) -> ModelShape:
        return otherwise if path is None else self.find(path)

    @property
    def policy(self) -> ModelShape:
        """The policy in PPO, and the reference."""
        return self._given(self.recipe.ppo.policy_init, self.base)

    @property
    def dpo(self) -> ModelShape:
        """The policy in DPO."""
        return self._given(self.recipe.dpo.init, self.base)

    @property
    def reward(self) -> ModelShape:
        """The model of the reward stage."""
        return self._given(self.recipe.reward.init, self.base)

    def source(self, source: RewardSourceConfig) -> ModelShape:
        """A part of the reward that is a model."""
        assert source.model is not None
        return self.reward if source.model == TRAINED else self.find(source.model)

    @property
    def critic(self) -> ModelShape:
        """What the critic starts from. That a reward model has the policy's vocabulary is told by its size alone."""
        if self.recipe.ppo.critic_init is not None:
            return self.find(self.recipe.ppo.critic_init)
        rewards = [self.source(source) for source in self.recipe.reward_models.values()]
        return next((shape for shape in rewards if shape.vocab == self.policy.vocab), self.policy)


def members(recipe: Recipe, stage: str, shapes: Shapes) -> tuple[Member, ...]:
    """The networks of a stage, in the order in which a run places them; engines are not among them."""
    if stage in ("sft", "dpo"):
        return (_language(recipe, "policy", shapes.dpo if stage == "dpo" else shapes.base, trains=True),)
    if stage == "reward":
        return (_scalar(recipe, "reward", "reward", shapes.reward, trains=True),)
    found = [_language(recipe, "policy", shapes.policy, trains=True)]
    if recipe.algorithm.has_critic:
        found.append(_scalar(recipe, "critic", "critic", shapes.critic, trains=True))
    if recipe.has_reference:
        found.append(_language(recipe, "reference", shapes.policy, trains=False))
    for name, source in recipe.reward_models.items():
        found.append(_scalar(recipe, f"reward {name}", "reward", shapes.source(source), trains=False))
    if recipe.early_stop is not None and recipe.early_stop.scorer.model is not None:
        found.append(_scalar(recipe, "judge", "reward", shapes.source(recipe.early_stop.scorer), trains=False))
    return tuple(found)


def _language(recipe: Recipe, role: str, shape: ModelShape, trains: bool) -> Member:
    lora, whole = recipe.model.lora, shape.parameters
    if not trains:
        trained, frozen = 0, whole
    elif lora is None:
        trained, frozen = whole, 0
    else:
        trained, frozen = shape.adapters(lora.rank, lora.targets), whole
    config = getattr(recipe.placement, role)
    return Member(role=role, key=role, config=config, shape=shape, head="language", trained=trained, frozen=frozen)


def _scalar(recipe: Recipe, role: str, key: str, shape: ModelShape, trains: bool) -> Member:
    whole = shape.classifier
    trained, frozen = (whole, 0) if trains else (0, whole)
    config = getattr(recipe.placement, key)
    return Member(role=role, key=key, config=config, shape=shape, head="scalar", trained=trained, frozen=frozen)


def seats(recipe: Recipe, stage: Stage, found: tuple[Member, ...], cluster: Cluster) -> tuple[Seat, ...]:
    """Where every rank and engine comes to lie; none where the cluster is too small.

    Bundles go to nodes as Ray's ``PACK`` places them: the widest first, as many in one node as fit. Engines are placed
    first, then the roles in their order, each rank in the next free bundle of its size.
    """
    width, engines = recipe.rollout.tensor_parallel, recipe.rollout.engines if stage == "ppo" else 0
    asked = [(ENGINE, rank, width) for rank in range(engines)]
    asked += [(member.role, rank, 1) for member in found for rank in range(member.config.ranks)]
    if choose_strategy(recipe, stage, cluster.total) == "colocated":
        bundles = _packed([1] * gpus_needed(recipe, stage, "colocated"), cluster)
        shared = [rank for _, rank, _ in asked]
    else:
        sizes = sorted((size for _, _, size in asked), reverse=True)
        bundles = _packed(sizes, cluster)
        wide_first = sorted(range(len(asked)), key=lambda i: -asked[i][2])
        shared = [wide_first.index(i) for i in range(len(asked))]
    if bundles is None or (asked and max(shared) >= len(bundles)):
        return ()
    return tuple(
        Seat(role=role, rank=rank, node=bundles[place][0], gpus=bundles[place][1])
        for (role, rank, _), place in zip(asked, shared, strict=True)
    )


def _packed(sizes: list[int], cluster: Cluster) -> list[tuple[int, tuple[int, ...]]] | None:
    """Node and GPUs of each bundle, the widest first; ``None`` where they do not all fit."""
    places: dict[int, tuple[int, tuple[int, ...]]] = {}
    for node in range(cluster.nodes):
        free = list(range(cluster.gpus))
        for index, size in enumerate(sizes):
            if index not in places and size <= len(free):
                places[index] = (node, tuple(free[:size]))
                free = free[size:]
    return [places[index] for index in range(len(sizes))] if len(places) == len(sizes) else None
