"""Where the actors of a run go: GPUs by placement group, node by node, and a place on any node without GPUs."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import GetTimeoutError
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from actors.cluster import GPU_TYPE, free_gpus, nodes
from rlhf.config.schema import Recipe, Stage
from rlhf.device import Device
from rlhf.errors import MachineryError
from rlhf.placement.machine import choose_strategy
from rlhf.placement.pools import ENGINES, Pool, Resting, pack, pools, resting

SHARE = 0.1
"""Part of a GPU that Ray counts for each role that shares it, ten at most; memory is the roles' own business."""
TYPE_SHARE = 0.001
"""What a seat takes of the resource that names its node's type of GPU."""
NODE_LABEL = "ray.io/node-id"
"""The label that Ray gives each node."""
POLL_SECONDS = 0.5
"""Between two looks at what is free."""


@dataclass(frozen=True, kw_only=True)
class Seat:
    """A reserved place: a bundle of a placement group that is on one node."""

    group: PlacementGroup
    bundle: int
    node: str

    @property
    def strategy(self) -> PlacementGroupSchedulingStrategy:
        """The same, as Ray is told it."""
        return PlacementGroupSchedulingStrategy(self.group, placement_group_bundle_index=self.bundle)


class Placement:
    """Gives each actor its place. On CPUs all actors share the machine and no place is reserved.

    Seats are reserved where ``pack`` puts them: left to Ray, small groups may take the room that a large one needs.

    Raises:
        MachineryError: the GPUs were not free before ``placement.start_timeout_seconds``.
    """

    def __init__(self, recipe: Recipe, device: Device, stage: Stage, gpus: int) -> None:
        self.recipe, self.device = recipe, device
        self.pools = pools(recipe, stage, choose_strategy(recipe, stage, gpus)) if device == "cuda" else ()
        self._resting = resting(recipe, stage, self.pools)
        self._seats: dict[tuple[str, int], Seat] = {}
        if not self.pools:
            return
        try:
            self._reserve([(pool, range(pool.seats)) for pool in self.pools])
        except BaseException:
            self.free()
            raise

    @property
    def engines_share(self) -> bool:
        """Whether engines use GPUs of others, and have to sleep while those compute."""
        return any(pool.shared and ENGINES in pool.roles for pool in self.pools)

    def resting(self, role: str) -> Resting | None:
        """What of a role lies in the host's memory between its phases; ``None`` where nobody has a use for the room."""
        kind = self._resting.get(role, "none")
        shares = any(pool.shared and role in pool.roles for pool in self.pools)
        return kind if kind != "none" or shares else None

    def place(self, role: str, rank: int) -> dict[str, Any]:
        """Ray's options for rank ``rank`` of a role; of one without GPUs, any node's.

        Places on a node that is lost are given up, and others reserved.
        """
        pool = next((pool for pool in self.pools if role in pool.roles), None)
        if pool is None:
            return {"num_cpus": 0, "scheduling_strategy": "SPREAD"}  # over all nodes: Ray would choose at random
        self._renew(pool)
        gpus = SHARE if pool.shared else pool.width
        return {"num_cpus": 0, "num_gpus": gpus, "scheduling_strategy": self._seats[pool.name, rank].strategy}

    def _renew(self, pool: Pool) -> None:
        alive = {node["NodeID"] for node in nodes()}
        lost = [seat for seat in range(pool.seats) if self._seats[pool.name, seat].node not in alive]
        self._remove([self._seats[pool.name, seat].group for seat in lost])
        if lost:
            self._reserve([(pool, lost)])

    def _reserve(self, wanted: Sequence[tuple[Pool, Sequence[int]]]) -> None:
        """Reserve seats of pools, by number, as soon as there is room for all of them."""
        end = time.monotonic() + self.recipe.placement.start_timeout_seconds
        asked = [pool.of(len(seats)) for pool, seats in wanted]
        while (chunks := pack(asked, list((free := free_gpus()).values()))) is None:
            if time.monotonic() > end:
                raise self._not_free(asked)
            time.sleep(POLL_SECONDS)
        for chunk in chunks:
            pool, seats = wanted[chunk.pool]
            self._take(pool, seats[chunk.first : chunk.first + chunk.seats], list(free)[chunk.node], end)

    def _take(self, pool: Pool, seats: Sequence[int], node: str, end: float) -> None:
        """Reserve these seats of a pool on one node."""
        bundle: dict[str, float] = {"GPU": pool.width, "CPU": 1}
        if pool.gpu_type is not None:
            bundle[GPU_TYPE + pool.gpu_type] = TYPE_SHARE
        here = [{NODE_LABEL: node}] * len(seats)
        group = placement_group([bundle] * len(seats), strategy="STRICT_PACK", bundle_label_selector=here)
        for place, seat in enumerate(seats):
            self._seats[pool.name, seat] = Seat(group=group, bundle=place, node=node)
        try:
            ray.get(group.ready(), timeout=max(1.0, end - time.monotonic()))
        except GetTimeoutError as error:
            raise self._not_free([pool.of(len(seats))]) from error

    def _not_free(self, asked: Sequence[Pool]) -> MachineryError:
        wanted = ", ".join(f"{' + '.join(pool.roles)} {pool.seats} x {pool.width}" for pool in asked)
        free = ", ".join(str(node.gpus) for node in free_gpus().values())
        return MachineryError(
            f"GPUs, with a CPU for each actor, were not free within {self.recipe.placement.start_timeout_seconds:.0f} "
            f"s: asked for {wanted}; free now on each node: {free}. Another job may hold them, or a node has not come "
            "back: ask `ray status`."
        )

    def _remove(self, groups: Sequence[PlacementGroup]) -> None:
        for group in {group.id: group for group in groups}.values():
            remove_placement_group(group)

    def free(self) -> None:
        """Give the places back."""
        self._remove([seat.group for seat in self._seats.values()])
        self._seats.clear()
