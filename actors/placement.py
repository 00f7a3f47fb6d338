"""Where the actors of a run go: GPUs by placement group, checked against what there is before anything waits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import ray
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from rlhf.config.schema import Recipe
from rlhf.device import Device
from rlhf.errors import MachineryError

ROLES = ("policy", "critic", "reference", "reward")


@dataclass(frozen=True, kw_only=True)
class Place:
    """Ray's options for one actor, and the GPUs' share that it may use."""

    options: dict[str, Any]


class Placement:
    """Gives each actor its place. On CPUs all actors share the machine and no place is reserved."""

    def __init__(self, recipe: Recipe, device: Device, gpus: int) -> None:
        self.recipe, self.device = recipe, device
        self.colocated = device == "cuda" and is_colocated(recipe, gpus)
        self.group: PlacementGroup | None = None
        self._next = 0
        if device == "cuda":
            self.group = self._reserve(gpus_needed(recipe, self.colocated))

    def _reserve(self, gpus: int) -> PlacementGroup:
        group = placement_group([{"GPU": 1, "CPU": 1}] * gpus, strategy="PACK")
        try:
            ray.get(group.ready(), timeout=self.recipe.placement.start_timeout_seconds)
        except ray.exceptions.GetTimeoutError as error:
            remove_placement_group(group)
            free = ray.available_resources()
            raise MachineryError(
                f"{gpus} GPUs with one CPU each were not free within {self.recipe.placement.start_timeout_seconds:.0f} s; free now: "
                f"{free.get('GPU', 0):.0f} GPUs, {free.get('CPU', 0):.0f} CPUs. Another job may hold them (ray status)."
            ) from error
        return group

    def place(self, rank: int, gpus: int = 1) -> Place:
        """The place of the next actor, rank ``rank`` of its role, computing on ``gpus`` GPUs.

        Colocated roles share GPU ``rank``; separate ones take the next free GPUs in turn. An engine over several GPUs takes
        them without a bundle of its own: vLLM places its shards itself inside the actor.
        """
        if self.group is None:
            return Place(options={"num_cpus": 0})
        if self.colocated:
            share = 1.0 / (len(ROLES) + 1)
            return Place(options={"num_cpus": 0, "num_gpus": share, "scheduling_strategy": self._bundle(rank)})
        if gpus > 1:
            return Place(options={"num_cpus": 0, "num_gpus": gpus})
        self._next += 1
        return Place(options={"num_cpus": 0, "num_gpus": 1, "scheduling_strategy": self._bundle(self._next - 1)})

    def _bundle(self, index: int) -> PlacementGroupSchedulingStrategy:
        return PlacementGroupSchedulingStrategy(self.group, placement_group_bundle_index=index)

    def free(self) -> None:
        """Give the places back."""
        if self.group is not None:
            remove_placement_group(self.group)


def is_colocated(recipe: Recipe, gpus: int) -> bool:
    """Whether all roles share every GPU: as asked, or because there are too few to separate them."""
    if recipe.placement.strategy == "auto":
        return gpus_needed(recipe, colocated=False) + _engine_gpus(recipe) > gpus
    return recipe.placement.strategy == "colocated"


def gpus_needed(recipe: Recipe, colocated: bool) -> int:
    """GPUs that the placement group reserves."""
    ranks = [getattr(recipe.placement, role).ranks for role in ROLES]
    if colocated:
        return max(*ranks, recipe.rollout.engines)
    return sum(ranks) + (recipe.rollout.engines if recipe.rollout.tensor_parallel == 1 else 0)


def _engine_gpus(recipe: Recipe) -> int:
    return recipe.rollout.engines * recipe.rollout.tensor_parallel if recipe.rollout.tensor_parallel > 1 else 0
