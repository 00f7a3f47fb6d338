"""Searches the smallest change that makes a recipe fit: the fewest keys, then the least cost in time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from typing import Any

from launch.plan.cluster import Cluster
from launch.plan.members import ROLES, Shapes
from launch.plan.plan import check, place, planned_stages
from launch.plan.work import longest
from rlhf.config.schema import Recipe, Stage
from rlhf.errors import UserError
from rlhf.placement.machine import shares

Changes = dict[str, Any]
"""Dotted keys of a recipe, and their new values."""
BEAM, DEPTH = 6, 8
"""Number of attempts kept per round, and most changes in sequence."""
MOST_NODES = 256
"""Nodes of the largest cluster to suggest."""


def smallest_change(recipe: Recipe, stage: Stage, cluster: Cluster, shapes: Shapes) -> Changes | None:
    """Smallest set of settings found with which every stage fits, or None.

    Each round adds one change to the attempts that are closest to fitting, and the first that fits is returned. A
    search over all combinations might find fewer keys.
    """
    attempts: list[Changes] = [{}]
    seen: set[tuple[tuple[str, Any], ...]] = set()
    for _ in range(DEPTH):
        ranked: list[tuple[float, int, Changes]] = []
        for attempt in attempts:
            for change in candidates(changed(recipe, attempt), cluster):
                merged = {**attempt, **change}
                mark = tuple(sorted(merged.items()))
                if mark not in seen:
                    seen.add(mark)
                    ranked.append((_lack(changed(recipe, merged), stage, cluster, shapes), len(ranked), merged))
        nearest = (
            each for each in sorted(ranked, key=lambda each: each[:2]) if _valid(changed(recipe, each[2]), stage)
        )
        best = list(islice(nearest, BEAM))
        if not best:
            return None
        if best[0][0] == 0:
            return _without_idle(recipe, best[0][2], stage, cluster, shapes)
        attempts = [merged for _, _, merged in best]
    return None


def smallest_cluster(recipe: Recipe, stage: Stage, cluster: Cluster, shapes: Shapes) -> Cluster | None:
    """The same cluster with the number of nodes that the unchanged recipe needs, or None if more nodes do not help."""
    for nodes in range(cluster.nodes + 1, MOST_NODES + 1):
        larger = replace(cluster, nodes=nodes)
        if _lack(recipe, stage, larger, shapes) == 0:
            return larger
    return None


def _valid(recipe: Recipe, stage: Stage) -> bool:
    try:
        check(recipe, stage)
    except UserError:
        return False
    return True


def _lack(recipe: Recipe, stage: Stage, cluster: Cluster, shapes: Shapes) -> float:
    """Bytes by which a recipe exceeds the GPUs; 0 if it fits."""
    own, total = Shapes(recipe, shapes.find), 0.0
    for each in planned_stages(recipe, stage):
        placed = place(recipe, each, cluster, own)
        total += placed.excess + placed.missing * cluster.type.memory + len(placed.problems)
    return total


def _without_idle(recipe: Recipe, changes: Changes, stage: Stage, cluster: Cluster, shapes: Shapes) -> Changes:
    """Remove settings that are not needed to fit."""
    for key in list(changes):
        fewer = {name: value for name, value in changes.items() if name != key}
        reduced = changed(recipe, fewer)
        if fewer and _lack(reduced, stage, cluster, shapes) == 0 and _valid(reduced, stage):
            changes = fewer
    return changes


def changed(recipe: Recipe, changes: Changes) -> Recipe:
    """The recipe with new values at dotted keys."""
    for key, value in changes.items():
        recipe = _replaced(recipe, key.split("."), value)
    return recipe


def _replaced(section: Any, path: list[str], value: Any) -> Any:
    name, *rest = path
    return replace(section, **{name: _replaced(getattr(section, name), rest, value) if rest else value})


def candidates(recipe: Recipe, cluster: Cluster) -> Iterator[Changes]:
    """Yield single changes that could help, cheapest in time first."""
    yield from _rows(recipe)
    yield from _fractions(recipe)
    if not recipe.model.gradient_checkpointing:
        yield {"model.gradient_checkpointing": True}
    for role in ROLES:
        config = getattr(recipe.placement, role)
        yield from ({f"placement.{role}.zero_stage": stage} for stage in range(config.zero_stage + 1, 4))
    yield from _engines(recipe, cluster)
    yield from _ranks(recipe, cluster)
    if _shares_gpus(recipe):
        yield from _half(recipe)
    yield from _sequence_parallel(recipe)
    for role in ROLES:
        config = getattr(recipe.placement, role)
        if not config.offload and config.zero_stage and (config.zero_stage == 3 or role in ("policy", "critic")):
            yield {f"placement.{role}.offload": True}
    for role in ROLES:
        if _shares_gpus(recipe):
            yield from _between_phases(recipe, role)
    if recipe.placement.strategy != "colocated":
        width = {"rollout.tensor_parallel": 1, "rollout.engines": recipe.placement.policy.ranks}
        yield {"placement.strategy": "colocated", **(width if recipe.rollout.tensor_parallel > 1 else {})}
    if recipe.placement.strategy == "colocated":
        yield {"placement.strategy": "separate"}


def _shares_gpus(recipe: Recipe) -> bool:
    """Whether roles may share GPUs."""
    return recipe.placement.strategy == "colocated" or shares(recipe)


def _half(recipe: Recipe) -> Iterator[Changes]:
    """Half of all GPUs, because roles that share GPUs must change together."""
    halves = {f"placement.{role}.ranks": getattr(recipe.placement, role).ranks for role in ROLES}
    halves["rollout.engines"] = recipe.rollout.engines
    if change := {key: number // 2 for key, number in halves.items() if number % 2 == 0}:
        yield change


def _sequence_parallel(recipe: Recipe) -> Iterator[Changes]:
    for role in ROLES:
        config = getattr(recipe.placement, role)
        if config.tensor_parallel == 1 and config.ranks % (2 * config.sequence_parallel) == 0:
            yield {f"placement.{role}.sequence_parallel": 2 * config.sequence_parallel}


def _between_phases(recipe: Recipe, role: str) -> Iterator[Changes]:
    """Offload more of a role while another works on its GPU."""
    order = ("none", "auto", "all")  # on shared GPUs, ``auto`` is ``states``
    now = getattr(recipe.placement, role).offload_between_phases
    for kind in order[order.index("auto" if now == "states" else now) + 1 :]:
        yield {f"placement.{role}.offload_between_phases": kind}


def _rows(recipe: Recipe) -> Iterator[Changes]:
    shortest = max(sum(longest(recipe, stage)) for stage in ("sft", "ppo"))
    for role in ROLES:
        tokens = getattr(recipe.placement, role).micro_batch_tokens
        while tokens // 2 >= shortest:
            tokens //= 2
            yield {f"placement.{role}.micro_batch_tokens": tokens}


def _fractions(recipe: Recipe) -> Iterator[Changes]:
    now = round(20 * recipe.rollout.gpu_memory_fraction)
    for twentieths in sorted(range(2, 19), key=lambda other: abs(other - now)):
        if twentieths != now:
            yield {"rollout.gpu_memory_fraction": twentieths / 20}


def _engines(recipe: Recipe, cluster: Cluster) -> Iterator[Changes]:
    engines, width = recipe.rollout.engines, recipe.rollout.tensor_parallel
    if engines % 2 == 0:
        if 2 * width <= cluster.gpus:
            yield {"rollout.tensor_parallel": 2 * width, "rollout.engines": engines // 2}
        yield {"rollout.engines": engines // 2}
    if 2 * width <= cluster.gpus:
        yield {"rollout.tensor_parallel": 2 * width}
    if width > 1:
        yield {"rollout.tensor_parallel": width // 2}


def _ranks(recipe: Recipe, cluster: Cluster) -> Iterator[Changes]:
    for role in ROLES:
        ranks = getattr(recipe.placement, role).ranks
        if 2 * ranks <= cluster.total:
            yield {f"placement.{role}.ranks": 2 * ranks}
        while ranks % 2 == 0:
            ranks //= 2
            yield {f"placement.{role}.ranks": ranks}
