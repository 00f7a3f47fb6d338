"""Which models a stage holds, of what shape, and on which GPUs each of their ranks comes to lie.

This says what ``actors/crew.py`` builds and ``actors/placement.py`` reserves, without building or reserving anything.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cache
from typing import Literal

from launch.plan.cluster import Cluster
from launch.plan.public import find_shape
from launch.plan.shapes import ModelShape, scratch_shape
from rlhf.config.schema import TRAINED, Recipe, RewardSourceConfig, RoleConfig, Stage
from rlhf.errors import UserError
from rlhf.placement.machine import choose_strategy
from rlhf.placement.pools import ENGINES, NodeGPUs, pack, pools
from rlhf.placement.shared_rows import SPLIT_TYPES, indivisible, row_ranks, unsplittable

Head = Literal["language", "scalar"]
ENGINE = ENGINES
ROLES = ("policy", "critic", "reference", "reward")
"""Sections of ``placement`` that have ranks."""


@dataclass(frozen=True, kw_only=True)
class PlannedRole:
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

    @property
    def own_shape(self) -> ModelShape:
        """Of a model whose matrices ranks share, the sizes of one rank's part."""
        ranks, shape = self.config.tensor_parallel, self.shape
        return replace(
            shape,
            heads=shape.heads // ranks,
            kv_heads=shape.kv_heads // ranks,
            intermediate=shape.intermediate // ranks,
        )

    def own(self, parameters: int) -> int:
        """Of so many parameters, all that are trained or all that there are, those in one rank's part; none is a
        shard."""
        return parameters - self.shape.layers * (self.shape.layer - self.own_shape.layer) if parameters else 0

    @property
    def shards(self) -> int:
        """Ranks over which ZeRO shards: those that have the same part of each matrix."""
        return self.config.ranks // self.config.tensor_parallel


@dataclass(frozen=True, kw_only=True)
class PlannedSlot:
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


def members(recipe: Recipe, stage: str, shapes: Shapes) -> tuple[PlannedRole, ...]:
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


def _language(recipe: Recipe, role: str, shape: ModelShape, trains: bool) -> PlannedRole:
    lora, whole = recipe.model.lora, shape.parameters
    if not trains:
        trained, frozen = 0, whole
    elif lora is None:
        trained, frozen = whole, 0
    else:
        trained, frozen = shape.adapters(lora.rank, lora.targets), whole
    config = getattr(recipe.placement, role)
    return PlannedRole(role=role, key=role, config=config, shape=shape, head="language", trained=trained, frozen=frozen)


def _scalar(recipe: Recipe, role: str, key: str, shape: ModelShape, trains: bool) -> PlannedRole:
    whole = shape.classifier
    trained, frozen = (whole, 0) if trains else (0, whole)
    config = getattr(recipe.placement, key)
    return PlannedRole(role=role, key=key, config=config, shape=shape, head="scalar", trained=trained, frozen=frozen)


def indivisible_heads(member: PlannedRole) -> Iterator[UserError]:
    """The error of a role whose ranks are to share rows or matrices, and cannot share its model's, if it is so."""
    shape, role = member.shape, member.config
    yield from indivisible(member.key, shape.name, shape.heads, shape.kv_heads, role.sequence_parallel)
    if role.tensor_parallel > 1 and shape.kind != "gated":
        yield UserError(
            f"placement.{member.key}.tensor_parallel = {role.tensor_parallel} and {shape.name}",
            f"which matrices to split is known here of {', '.join(SPLIT_TYPES)}",
            f"placement.{member.key}.tensor_parallel=1",
        )
        return
    widths = shape.heads, shape.kv_heads, shape.intermediate
    yield from unsplittable(member.key, shape.name, *widths, role.tensor_parallel)


def check_heads(recipe: Recipe, stages: Iterable[str], shapes: Shapes) -> Iterator[UserError]:
    """The same for all roles of some stages; none where shapes are not known yet, which each rank then looks at."""
    if all(row_ranks(getattr(recipe.placement, role)) == 1 for role in ROLES):
        return
    for stage in stages:
        try:
            found = members(recipe, stage, shapes)
        except UserError:
            continue
        for member in found:
            yield from indivisible_heads(member)


def seats(recipe: Recipe, stage: Stage, cluster: Cluster) -> tuple[PlannedSlot, ...]:
    """Where every rank and engine comes to lie; none where the cluster is too small. By pool, then by role and rank."""
    wanted = pools(recipe, stage, choose_strategy(recipe, stage, cluster.total))
    chunks = pack(wanted, [NodeGPUs(gpus=cluster.gpus)] * cluster.nodes)
    taken = [0] * cluster.nodes
    places: dict[tuple[int, int], tuple[int, tuple[int, ...]]] = {}
    for chunk in chunks or ():
        width = wanted[chunk.pool].width
        for place in range(chunk.first, chunk.first + chunk.seats):
            first = taken[chunk.node]
            taken[chunk.node] += width
            places[chunk.pool, place] = chunk.node, tuple(range(first, first + width))
    return tuple(
        PlannedSlot(role=member.role, rank=rank, node=places[number, rank][0], gpus=places[number, rank][1])
        for number, pool in enumerate(wanted if chunks else ())
        for member in pool.members
        for rank in range(member.ranks)
    )
