"""Lists the models of a stage with their shapes, and the GPUs of each of their ranks.

This mirrors ``actors/run_actors.py`` and ``actors/placement.py``, without building or reserving anything.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cache
from typing import Literal

from launch.plan.cluster import Cluster
from launch.plan.public import find_shape
from launch.plan.shapes import ModelShape, scratch_shape
from rlhf.config.schema import TRAINED, LoRAConfig, Recipe, RewardSourceConfig, RoleConfig, Stage
from rlhf.errors import UserError
from rlhf.placement.machine import choose_strategy
from rlhf.placement.parallelism import (
    TENSOR_PARALLEL_TYPES,
    model_parallel_size,
    sequence_parallel_problems,
    tensor_parallel_problems,
)
from rlhf.placement.pools import ENGINES, NodeGPUs, pack, pools

Head = Literal["language", "scalar"]
ENGINE = ENGINES
SCALE_BYTES = 1 / 64 + 4 / (64 * 256)
"""Bytes of scales for a weight in NF4, which itself takes four bits: one for 64 weights, and four for 256 of these."""
ROLES = ("policy", "critic", "reference", "reward")
"""Sections of ``placement`` with ranks."""


@dataclass(frozen=True, kw_only=True)
class PlannedRole:
    """A role of a stage: a network and the ranks that share it."""

    role: str
    """Its name: ``policy``, ``reward`` or, with the name of a reward source, ``reward model``."""
    key: str
    """Its section of ``placement``."""
    config: RoleConfig
    shape: ModelShape
    head: Head
    trained: int
    """Number of trained parameters."""
    frozen: int
    """Number of frozen parameters."""
    quantised: int = 0
    """How many of them are stored in 4 bits."""

    @property
    def parameters(self) -> int:
        """Number of all parameters."""
        return self.trained + self.frozen

    @property
    def own_shape(self) -> ModelShape:
        """Shape of one rank's layers under tensor parallelism."""
        ranks, shape = self.config.tensor_parallel, self.shape
        return replace(
            shape,
            heads=shape.heads // ranks,
            kv_heads=shape.kv_heads // ranks,
            intermediate=shape.intermediate // ranks,
        )

    def own(self, parameters: int) -> int:
        """One rank's part under tensor parallelism of all trained, or all, parameters; ZeRO's sharding is not
        included."""
        ranks = self.config.tensor_parallel
        return parameters - self.shape.split * (ranks - 1) // ranks if parameters else 0

    def stored_bytes(self, size: int, shards: int = 1) -> int:
        """Bytes of one rank's part of all parameters at ``size`` bytes per number, over ``shards`` ranks of ZeRO-3.

        The scales of quantised parameters are not sharded.
        """
        sharded = size * (self.own(self.parameters) - self.quantised) + self.quantised // 2
        return sharded // shards + int(SCALE_BYTES * self.quantised)

    @property
    def shards(self) -> int:
        """Ranks over which ZeRO shards: those with the same tensor-parallel part."""
        return self.config.ranks // self.config.tensor_parallel


@dataclass(frozen=True, kw_only=True)
class PlannedSlot:
    """Slot of a rank or an engine: GPUs of one node."""

    role: str
    rank: int
    node: int
    gpus: tuple[int, ...]


class Shapes:
    """The shapes of the models that a recipe names; each is looked up once."""

    def __init__(self, recipe: Recipe, find: Callable[[str], ModelShape] = find_shape) -> None:
        self.recipe, self.find = recipe, cache(find)

    @property
    def base(self) -> ModelShape:
        """Initial model of SFT."""
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
        """Initial model of the reward stage."""
        return self._given(self.recipe.reward.init, self.base)

    def source(self, source: RewardSourceConfig) -> ModelShape:
        """Model of a reward source."""
        assert source.model is not None
        return self.reward if source.model == TRAINED else self.find(source.model)

    @property
    def critic(self) -> ModelShape:
        """Initial model of the critic: a reward model counts as having the policy's vocabulary if its size is equal."""
        if self.recipe.ppo.critic_init is not None:
            return self.find(self.recipe.ppo.critic_init)
        rewards = [self.source(source) for source in self.recipe.reward_models.values()]
        return next((shape for shape in rewards if shape.vocab == self.policy.vocab), self.policy)


def members(recipe: Recipe, stage: str, shapes: Shapes) -> tuple[PlannedRole, ...]:
    """The networks of a stage in placement order, without engines."""
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
    return _planned(recipe, role, role, shape, "language", trains, recipe.model.lora)


def _scalar(recipe: Recipe, role: str, key: str, shape: ModelShape, trains: bool) -> PlannedRole:
    lora = recipe.model.reward_lora if role == "reward" else None
    return _planned(recipe, role, key, shape, "scalar", trains, lora)


def _planned(
    recipe: Recipe, role: str, key: str, shape: ModelShape, head: Head, trains: bool, lora: LoRAConfig | None
) -> PlannedRole:
    """A role; with ``lora``, training covers adapters and a classifier's head."""
    whole, own_head = (shape.parameters, 0) if head == "language" else (shape.classifier, shape.hidden)
    trained, frozen, quantised = (whole, 0, 0) if trains else (0, whole, 0)
    if trains and lora is not None:
        trained, frozen = shape.adapters(lora.rank, lora.targets) + own_head, whole - own_head
        quantised = shape.linear_weights if lora.quantization else 0
    return PlannedRole(
        role=role,
        key=key,
        config=getattr(recipe.placement, key),
        shape=shape,
        head=head,
        trained=trained,
        frozen=frozen,
        quantised=quantised,
    )


def indivisible_heads(member: PlannedRole) -> Iterator[UserError]:
    """The error of a role whose heads or matrices do not divide by its sequence-parallel or tensor-parallel size."""
    shape, role = member.shape, member.config
    yield from sequence_parallel_problems(member.key, shape.name, shape.heads, shape.kv_heads, role.sequence_parallel)
    if role.tensor_parallel > 1 and not shape.split:
        yield UserError(
            f"placement.{member.key}.tensor_parallel = {role.tensor_parallel} and {shape.name}",
            f"the supported model types are {', '.join(TENSOR_PARALLEL_TYPES)}",
            f"placement.{member.key}.tensor_parallel=1",
        )
        return
    widths = shape.heads, shape.kv_heads, shape.intermediate
    yield from tensor_parallel_problems(member.key, shape.name, *widths, role.tensor_parallel)


def check_heads(recipe: Recipe, stages: Iterable[str], shapes: Shapes) -> Iterator[UserError]:
    """Errors of ``indivisible_heads`` for all roles of some stages; ranks check roles of unknown shape."""
    if all(model_parallel_size(getattr(recipe.placement, role)) == 1 for role in ROLES):
        return
    for stage in stages:
        try:
            found = members(recipe, stage, shapes)
        except UserError:
            continue
        for member in found:
            yield from indivisible_heads(member)


def assign_slots(recipe: Recipe, stage: Stage, cluster: Cluster) -> tuple[PlannedSlot, ...]:
    """Slots of every rank and engine, by pool, role and rank; empty if the cluster is too small."""
    wanted = pools(recipe, stage, choose_strategy(recipe, stage, cluster.total))
    chunks = pack(wanted, [NodeGPUs(gpus=cluster.gpus)] * cluster.nodes)
    taken = [0] * cluster.nodes
    places: dict[tuple[int, int], tuple[int, tuple[int, ...]]] = {}
    for chunk in chunks or ():
        width = wanted[chunk.pool].width
        for place in range(chunk.first, chunk.first + chunk.slots):
            first = taken[chunk.node]
            taken[chunk.node] += width
            places[chunk.pool, place] = chunk.node, tuple(range(first, first + width))
    return tuple(
        PlannedSlot(role=member.role, rank=rank, node=places[number, rank][0], gpus=places[number, rank][1])
        for number, pool in enumerate(wanted if chunks else ())
        for member in pool.members
        for rank in range(member.ranks)
    )
