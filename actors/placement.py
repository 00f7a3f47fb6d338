"""Places a run's actors: with GPUs in bundles of placement groups, each group on one node; without GPUs on any node."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import ray
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from actors.cluster import GPU_TYPE, free_gpus, nodes
from rlhf.config.schema import Recipe, Stage
from rlhf.device import Device
from rlhf.errors import MachineryError
from rlhf.placement.machine import choose_strategy
from rlhf.placement.pools import ENGINES, OffloadMode, Pool, Sharing, offload_modes, pack, pools, sharing

GPU_SHARE = 0.1
"""Fraction of a GPU reserved in Ray for each role that shares it, so at most ten roles share a GPU.

Ray does not limit GPU memory.
"""
TYPE_SHARE = 0.001
"""Amount that a slot reserves of the resource that names its node's type of GPU."""
NODE_LABEL = "ray.io/node-id"
"""Label that Ray gives each node."""
POLL_SECONDS = 0.5
"""Interval at which free GPUs are polled, and at which a wait for them checks whether the run should stop."""


@dataclass(frozen=True, kw_only=True)
class Slot:
    """A reserved slot: one bundle of a placement group, and the id of the group's node."""

    group: PlacementGroup
    bundle: int
    node: str

    @property
    def strategy(self) -> PlacementGroupSchedulingStrategy:
        """Ray's scheduling strategy for an actor in this slot."""
        return PlacementGroupSchedulingStrategy(self.group, placement_group_bundle_index=self.bundle)


class Placement:
    """Reserves GPUs, and assigns a slot to each actor. Without GPUs nothing is reserved.

    Slots are reserved on the nodes that ``pack`` chooses, because Ray's own choice can fragment GPUs.

    Raises:
        MachineryError: the GPUs were not free before ``placement.start_timeout_seconds``.
    """

    def __init__(
        self, recipe: Recipe, device: Device, stage: Stage, gpus: int, check: Callable[[], None] = lambda: None
    ) -> None:
        """Reserve the slots of a stage.

        Args:
            check: called regularly while GPUs are awaited, and ends the wait by raising.
        """
        self.recipe, self.device, self._check = recipe, device, check
        self.pools = pools(recipe, stage, choose_strategy(recipe, stage, gpus)) if device == "cuda" else ()
        self._offload_modes = offload_modes(recipe, stage, self.pools)
        self._sharing = sharing(self.pools, self._offload_modes)
        self._slots: dict[tuple[str, int], Slot] = {}
        if not self.pools:
            return
        try:
            self._reserve([(pool, range(pool.slots)) for pool in self.pools])
        except BaseException:
            self.release()
            raise

    @property
    def engines_share(self) -> bool:
        """Whether engines share GPUs with other roles, and have to sleep while those compute."""
        return any(pool.shared and ENGINES in pool.roles for pool in self.pools)

    def offload_mode(self, role: str) -> OffloadMode | None:
        """State that a role offloads to host memory between its phases; None if ``Group.offload`` has nothing to do.

        A role with mode ``none`` that shares GPUs frees PyTorch's cache; on GPUs of its own the result is None.
        """
        kind = self._offload_modes.get(role, "none")
        shares = any(pool.shared and role in pool.roles for pool in self.pools)
        return kind if kind != "none" or shares else None

    def sharing(self, role: str) -> Sharing:
        """How a role shares GPUs; a reward that is no model shares none."""
        return self._sharing.get(role, Sharing())

    def actor_options(self, role: str, rank: int) -> dict[str, Any]:
        """Ray's options for a rank of a role; without GPUs, any node.

        Slots on failed nodes are released, and others are reserved.
        """
        pool = next((pool for pool in self.pools if role in pool.roles), None)
        if pool is None:
            return {"num_cpus": 0, "scheduling_strategy": "SPREAD"}  # Ray's default places at random
        self._renew(pool)
        gpus = GPU_SHARE if pool.shared else pool.width
        return {"num_cpus": 0, "num_gpus": gpus, "scheduling_strategy": self._slots[pool.name, rank].strategy}

    def _renew(self, pool: Pool) -> None:
        alive = {node["NodeID"] for node in nodes()}
        lost = [slot for slot in range(pool.slots) if self._slots[pool.name, slot].node not in alive]
        self._remove([self._slots[pool.name, slot].group for slot in lost])
        if lost:
            self._reserve([(pool, lost)])

    def _reserve(self, wanted: Sequence[tuple[Pool, Sequence[int]]]) -> None:
        """Reserve slots of pools, given by index, as soon as all of them fit."""
        end = time.monotonic() + self.recipe.placement.start_timeout_seconds
        asked = [pool.of(len(slots)) for pool, slots in wanted]
        while (chunks := pack(asked, list((free := free_gpus()).values()))) is None:
            if time.monotonic() > end:
                raise self._not_free(asked)
            self._check()
            time.sleep(POLL_SECONDS)
        for chunk in chunks:
            pool, slots = wanted[chunk.pool]
            self._take(pool, slots[chunk.first : chunk.first + chunk.slots], list(free)[chunk.node], end)

    def _take(self, pool: Pool, slots: Sequence[int], node: str, end: float) -> None:
        """Reserve these slots of a pool on one node, in one placement group."""
        bundle: dict[str, float] = {"GPU": pool.width, "CPU": 1}
        if pool.gpu_type is not None:
            bundle[GPU_TYPE + pool.gpu_type] = TYPE_SHARE
        here = [{NODE_LABEL: node}] * len(slots)
        group = placement_group([bundle] * len(slots), strategy="STRICT_PACK", bundle_label_selector=here)
        for bundle_index, slot in enumerate(slots):
            self._slots[pool.name, slot] = Slot(group=group, bundle=bundle_index, node=node)
        ready, end = group.ready(), max(end, time.monotonic() + 1.0)
        while not ray.wait([ready], timeout=POLL_SECONDS)[0]:
            self._check()
            if time.monotonic() > end:
                raise self._not_free([pool.of(len(slots))])
        ray.get(ready)

    def _not_free(self, asked: Sequence[Pool]) -> MachineryError:
        wanted = ", ".join(f"{' + '.join(pool.roles)} {pool.slots} x {pool.width}" for pool in asked)
        free = ", ".join(str(node.gpus) for node in free_gpus().values())
        return MachineryError(
            f"GPUs, with a CPU for each actor, were not free within {self.recipe.placement.start_timeout_seconds:.0f} "
            f"s: requested {wanted}; free now on each node: {free}. Another job may hold them, or a node is down: see "
            "`ray status`."
        )

    def _remove(self, groups: Sequence[PlacementGroup]) -> None:
        for group in {group.id: group for group in groups}.values():
            remove_placement_group(group)

    def release(self) -> None:
        """Release all reserved slots."""
        self._remove([slot.group for slot in self._slots.values()])
        self._slots.clear()
