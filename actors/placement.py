"""Where the actors of a run go: GPUs by placement group, checked against what there is before anything waits."""

from __future__ import annotations

from typing import Any

import ray
from ray.exceptions import GetTimeoutError
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from rlhf.config.machine import Stage, choose_strategy, gpus_by_role, gpus_needed
from rlhf.config.schema import Recipe
from rlhf.device import Device
from rlhf.errors import MachineryError

SHARE = 0.1
"""Part of a GPU that Ray counts for each role that shares it, ten at most; memory is the roles' own business."""


class Placement:
    """Gives each actor its place. On CPUs all actors share the machine and no place is reserved."""

    def __init__(self, recipe: Recipe, device: Device, stage: Stage, gpus: int) -> None:
        self.recipe, self.device = recipe, device
        self.colocated = device == "cuda" and choose_strategy(recipe, stage, gpus) == "colocated"
        self.group: PlacementGroup | None = None
        self._free = self._bundles(stage)
        if device == "cuda":
            self.group = self._reserve(self._free)

    def _bundles(self, stage: Stage) -> list[int]:
        """GPUs of each bundle: one for each rank, and one as wide as an engine for each engine."""
        if self.colocated:
            return [1] * gpus_needed(self.recipe, stage, "colocated")
        asked = gpus_by_role(self.recipe, stage)
        width = self.recipe.rollout.tensor_parallel
        engines = asked.pop("rollout", 0) // width
        return [1] * sum(asked.values()) + [width] * engines

    def _reserve(self, sizes: list[int]) -> PlacementGroup:
        seconds, gpus = self.recipe.placement.start_timeout_seconds, sum(sizes)
        group = placement_group([{"GPU": size, "CPU": 1} for size in sizes], strategy="PACK")
        try:
            ray.get(group.ready(), timeout=seconds)
        except GetTimeoutError as error:
            remove_placement_group(group)
            free = ray.available_resources()
            raise MachineryError(
                f"{gpus} GPUs with a CPU for each actor were not free within {seconds:.0f} s; free now: "
                f"{free.get('GPU', 0):.0f} GPUs, {free.get('CPU', 0):.0f} CPUs. Another job may hold them: ask "
                "`ray status`."
            ) from error
        return group

    def place(self, rank: int, gpus: int = 1) -> dict[str, Any]:
        """Ray's options for rank ``rank`` of a role, computing on ``gpus`` GPUs.

        Colocated roles share GPU ``rank``; separate ones take the next free bundle of that size.
        """
        if self.group is None or gpus == 0:
            return {"num_cpus": 0, "scheduling_strategy": "SPREAD"}  # over all nodes: Ray would choose at random
        if self.colocated:
            return {"num_cpus": 0, "num_gpus": SHARE, "scheduling_strategy": self._bundle(rank)}
        index = self._free.index(gpus)
        self._free[index] = 0
        return {"num_cpus": 0, "num_gpus": gpus, "scheduling_strategy": self._bundle(index)}

    def _bundle(self, index: int) -> PlacementGroupSchedulingStrategy:
        return PlacementGroupSchedulingStrategy(self.group, placement_group_bundle_index=index)

    def free(self) -> None:
        """Give the places back."""
        if self.group is not None:
            remove_placement_group(self.group)
