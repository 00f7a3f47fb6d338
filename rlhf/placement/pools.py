"""Assigns a stage's roles to pools of GPUs, and pools to nodes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypeVar

from rlhf.config.schema import Recipe, Stage
from rlhf.errors import UserError

Strategy = Literal["colocated", "separate"]
OffloadMode = Literal["none", "states", "all"]
"""State that a role offloads to host memory between its phases."""
Part = Literal["weights", "states"]
"""What a forward pass needs, and what only an update does: Adam's moments, master weights, gradients, buffers."""

ENGINES, HELD_OUT_SCORER = "rollout", "judge"
Role = TypeVar("Role")


@dataclass(frozen=True, kw_only=True)
class RoleRequest:
    """Request of a role: ``ranks`` slots of ``width`` GPUs each.

    ``role`` is the name of its group, ``key`` that of its section of ``placement``.
    """

    role: str
    key: str
    ranks: int
    width: int = 1

    @property
    def gpus(self) -> int:
        """Number of GPUs if it shares none."""
        return self.ranks * self.width


@dataclass(frozen=True, kw_only=True)
class Pool:
    """GPUs that belong together: rank r of each of its roles is in slot r, which is ``width`` GPUs of one node."""

    members: tuple[RoleRequest, ...]
    gpu_type: str | None = None

    @property
    def name(self) -> str:
        """The role that owns the GPUs."""
        return self.members[0].role

    @property
    def width(self) -> int:
        """GPUs of a slot: one where roles share it."""
        return 1 if self.shared else self.members[0].width

    @property
    def slots(self) -> int:
        """As many as its largest role takes."""
        return max(member.gpus for member in self.members) // self.width

    @property
    def gpus(self) -> int:
        """GPUs in all."""
        return self.slots * self.width

    def of(self, slots: int) -> Pool:
        """The same with so many slots."""
        first = replace(self.members[0], ranks=slots, width=self.width)
        return replace(
            self, members=(first, *(replace(each, ranks=min(each.ranks, slots)) for each in self.members[1:]))
        )

    @property
    def shared(self) -> bool:
        """Whether several roles share its GPUs."""
        return len(self.members) > 1

    @property
    def roles(self) -> tuple[str, ...]:
        """Names of its roles."""
        return tuple(member.role for member in self.members)


@dataclass(frozen=True, kw_only=True)
class NodeGPUs:
    """GPUs of one node, and their type as Ray names it; None if it is not known."""

    gpus: int
    type: str | None = None


@dataclass(frozen=True, kw_only=True)
class Chunk:
    """Slots of a pool that lie on one node: ``first`` and those after it."""

    pool: int
    node: int
    first: int
    slots: int


def section_of(role: str) -> str:
    """Section of ``placement`` of a role, by the name of its group: ``reward`` for ``reward model``."""
    return "reward" if role == HELD_OUT_SCORER else role.partition(" ")[0]


def asked(recipe: Recipe, stage: Stage) -> tuple[RoleRequest, ...]:
    """The requests of a stage's roles. A pipeline requests as much as PPO, which suffices for its other stages."""
    place = recipe.placement
    engines = RoleRequest(role=ENGINES, key=ENGINES, ranks=recipe.rollout.engines, width=recipe.rollout.tensor_parallel)
    if stage in ("sft", "dpo"):
        return (RoleRequest(role="policy", key="policy", ranks=place.policy.ranks),)
    if stage == "reward":
        return (RoleRequest(role="reward", key="reward", ranks=place.reward.ranks),)
    if stage == "generate":
        return (engines,)
    roles = [RoleRequest(role="policy", key="policy", ranks=place.policy.ranks)]
    if recipe.algorithm.has_critic:
        roles.append(RoleRequest(role="critic", key="critic", ranks=place.critic.ranks))
    if recipe.has_reference:
        roles.append(RoleRequest(role="reference", key="reference", ranks=place.reference.ranks))
    scorers = [f"reward {name}" for name in recipe.reward_models]
    if recipe.early_stop is not None and recipe.early_stop.scorer.model is not None:
        scorers.append(HELD_OUT_SCORER)
    roles += [RoleRequest(role=name, key="reward", ranks=place.reward.ranks) for name in scorers]
    return (*roles, engines)


def pools(recipe: Recipe, stage: Stage, strategy: Strategy) -> tuple[Pool, ...]:
    """The pools of a stage: one if all roles are colocated, otherwise one for each role that owns GPUs."""
    roles = asked(recipe, stage)
    if strategy == "colocated":
        return (Pool(members=roles, gpu_type=recipe.placement.gpu_type_of(roles[0].key)),)
    keys = {role.key for role in roles}
    hosts = {role.key: recipe.placement.host_of(role.key) for role in roles}
    own = [role for role in roles if hosts[role.key] not in keys]
    found = {role.role: Pool(members=(role,), gpu_type=recipe.placement.gpu_type_of(role.key)) for role in own}
    for role in roles:
        if role not in own:
            host = next(each.role for each in own if each.key == hosts[role.key])
            found[host] = replace(found[host], members=(*found[host].members, role))
    return tuple(found.values())


def offload_modes(recipe: Recipe, stage: Stage, wanted: Sequence[Pool]) -> dict[str, OffloadMode]:
    """The offload mode of each role that is a model. ``wanted`` are the pools of GPUs."""
    shared = {role for pool in wanted if pool.shared for role in pool.roles}
    models = [role for role in asked(recipe, stage) if role.role != ENGINES]
    return {role.role: _offload_mode(recipe, role, role.role in shared) for role in models if stage == "ppo"}


def _offload_mode(recipe: Recipe, role: RoleRequest, shared: bool) -> OffloadMode:
    """The held-out scorer of ``early_stop`` never offloads its weights: it scores while the engines are awake."""
    chosen: Literal["auto", "none", "states", "all"] = getattr(recipe.placement, role.key).offload_between_phases
    if chosen == "auto":
        return "states" if shared else "none"
    return "states" if chosen == "all" and role.role == HELD_OUT_SCORER else chosen


@dataclass(frozen=True, kw_only=True)
class Sharing:
    """How a role shares GPUs with others."""

    key: str | None = None
    """Roles with the same key compute one after another; None: the role waits for no other. See ``turns``."""
    is_after_rollout: bool = False
    """Whether the role scores only after generation, because the engines compute on its GPUs or take its memory."""


def sharing(wanted: Sequence[Pool], modes: Mapping[str, OffloadMode]) -> dict[str, Sharing]:
    """How each role of ``modes`` shares GPUs; ``wanted`` are the pools of GPUs.

    Processes that compute on one GPU at the same time get slices of its time in turn, and collectives wait for the
    slowest rank. Roles with offload mode ``all`` also take turns without GPUs.
    """
    shared = {role: pool for pool in wanted if pool.shared for role in pool.roles}
    found = {}
    for role, mode in modes.items():
        pool = shared.get(role)
        with_engines = pool is not None and ENGINES in pool.roles
        key = pool.name if pool is not None else "host" if mode == "all" else None
        found[role] = Sharing(key=key, is_after_rollout=with_engines or mode == "all")
    return found


def turns(roles: Mapping[Role, str | None]) -> tuple[tuple[Role, ...], ...]:
    """Groups of roles that compute at the same time, in order: no two of a group have the same key.

    Args:
        roles: the key of each role, see ``Sharing``; roles with the key None are in the first group.
    """
    found: list[list[Role]] = []
    count = Counter[str]()
    for role, key in roles.items():
        turn = 0 if key is None else count[key]
        if key is not None:
            count[key] += 1
        if turn == len(found):
            found.append([])
        found[turn].append(role)
    return tuple(map(tuple, found))


def check_sharing(recipe: Recipe) -> Iterator[UserError]:
    """Yield one error for each role of PPO with an impossible ``share_with`` or ``gpu_type``."""
    place, keys = recipe.placement, {role.key for role in asked(recipe, "ppo")}
    for key in sorted(keys):
        host, kind = place.host_of(key), place.gpu_type_of(key)
        what, users = f"placement.{key}.share_with = {host}", "policy" if place.strategy == "colocated" else host
        if host is not None and place.strategy == "colocated":
            yield UserError(
                f"{what} with placement.strategy = colocated", "there all roles share all GPUs", "leave one of them out"
            )
        elif host == key or host is not None and host not in keys:
            why = "a role cannot be its own guest" if host == key else f"this run has no {host}"
            yield UserError(what, why, f"placement.{key}.share_with=null or another role")
        elif host is not None and place.host_of(host) is not None:
            further = place.host_of(host)
            yield UserError(
                what,
                f"{host} itself uses the GPUs of {further}",
                f"placement.{key}.share_with={further}" if further != key else f"placement.{host}.share_with=null",
            )
        elif users is not None and kind not in (None, place.gpu_type_of(users)):
            yield UserError(
                f"placement.{key}.gpu_type = {kind!r}, and {key} uses the GPUs of {users}",
                f"those are of the type {place.gpu_type_of(users)!r}" if place.gpu_type_of(users) else "of no set type",
                f"placement.{key}.gpu_type=null, or the same for both",
            )


def pack(wanted: Sequence[Pool], nodes: Sequence[NodeGPUs]) -> tuple[Chunk, ...] | None:
    """A node for every slot, so that a pool lies in one node where it can; ``None`` where the GPUs do not suffice.

    Pools are placed by size, the largest first, each on the node on which it leaves the fewest free GPUs; one that fits
    on no node fills the emptiest node and continues on the next. If this leaves no space for wide engines, they are
    placed first.
    """
    if sum(pool.gpus for pool in wanted) > sum(node.gpus for node in nodes):
        return None
    by_size = sorted(range(len(wanted)), key=lambda i: -wanted[i].gpus)
    by_width = sorted(by_size, key=lambda i: -wanted[i].width)
    tries = (_packed(wanted, order, nodes) for order in (by_size, by_width))
    return next((chunks for chunks in tries if chunks is not None), None)


def _packed(wanted: Sequence[Pool], order: Sequence[int], nodes: Sequence[NodeGPUs]) -> tuple[Chunk, ...] | None:
    free, chunks = [node.gpus for node in nodes], []
    for index in order:
        pool, first = wanted[index], 0
        while first < pool.slots:
            room = [n for n in _of_type(pool, nodes) if free[n] >= pool.width]
            if not room:
                return None
            node = _best(room, free, _together(pool, first))
            slots = min(_together(pool, first) // pool.width, free[node] // pool.width)
            chunks.append(Chunk(pool=index, node=node, first=first, slots=slots))
            free[node] -= slots * pool.width
            first += slots
    return tuple(chunks)


def _together(pool: Pool, first: int) -> int:
    """GPUs that had better be in one node. Engines do not speak with each other: each is placed by itself."""
    return pool.width if pool.roles == (ENGINES,) else (pool.slots - first) * pool.width


def _of_type(pool: Pool, nodes: Sequence[NodeGPUs]) -> Iterator[int]:
    return (n for n, node in enumerate(nodes) if pool.gpu_type in (None, node.type))


def _best(room: Sequence[int], free: Sequence[int], size: int) -> int:
    """The node on which ``size`` GPUs leave the fewest free, or the emptiest node if they fit on none."""
    whole = [n for n in room if free[n] >= size]
    return min(whole, key=lambda n: free[n]) if whole else max(room, key=lambda n: free[n])
