"""The plan of a command, and its representation as JSON values."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from launch.plan.cluster import Cluster
from launch.plan.fit import Changes, smallest_change, smallest_cluster
from launch.plan.members import PlannedRole, Shapes
from launch.plan.memory import ASLEEP, GRAPHS, PROCESS
from launch.plan.object_store import object_store_bytes
from launch.plan.plan import StagePlan, Use, check, plan_stage, planned_stages
from launch.plan.public import find_shape
from launch.plan.shapes import ModelShape
from launch.plan.strategy import choose, decided
from launch.plan.timing import SHARES
from rlhf.config.schema import Recipe, Stage
from rlhf.placement.pools import OffloadMode


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Needs of a recipe on a cluster."""

    recipe: Recipe
    command: Stage
    cluster: Cluster
    stages: tuple[StagePlan, ...]
    why: str = ""
    """Reason for the strategy, if the recipe left it open."""
    change: Changes | None = None
    """Smallest change found with which the recipe fits, if it does not fit."""
    larger: Cluster | None = None
    """Smallest cluster of the same nodes on which the unchanged recipe fits, if it does not fit."""

    @property
    def fits(self) -> bool:
        """Whether every stage fits."""
        return not any(stage.placed.problems for stage in self.stages)

    @property
    def object_store(self) -> int | None:
        """Bytes of Ray's object store that each node should have; None if a stage has no slots on this cluster."""
        placed = [stage.placed for stage in self.stages]
        if not all(each.slots for each in placed):
            return None
        return max(object_store_bytes(each.members, each.slots) for each in placed)


def make_plan(recipe: Recipe, command: Stage, cluster: Cluster, find: Callable[[str], ModelShape] = find_shape) -> Plan:
    """Plan every stage of a command.

    Raises:
        UserError: no cluster could run the recipe, or a model's shape is unknown.
    """
    check(recipe, command)
    shapes = Shapes(recipe, find)
    choice = choose(recipe, command, cluster, shapes)
    recipe = decided(recipe, choice)
    stages = tuple(plan_stage(recipe, stage, cluster, shapes) for stage in planned_stages(recipe, command))
    plan = Plan(recipe=recipe, command=command, cluster=cluster, stages=stages, why=choice.why if choice else "")
    if plan.fits:
        return plan
    return replace(
        plan,
        change=smallest_change(recipe, command, cluster, shapes),
        larger=smallest_cluster(recipe, command, cluster, shapes),
    )


def as_values(plan: Plan) -> dict[str, Any]:
    """JSON values of the plan, in bytes and seconds, without rounding.

    Keys: ``recipe``, ``command``, ``fits``, ``strategy_chosen`` (reason, or null), ``cluster``, ``assumed``
    (``assumptions``), ``object_store`` (bytes on each node, or null), ``stages`` by name (``_stage``), and, if the
    recipe does not fit, ``change`` and ``nodes_that_suffice``; otherwise these are null.
    """
    return {
        "recipe": plan.recipe.name,
        "command": plan.command,
        "fits": plan.fits,
        "strategy_chosen": plan.why or None,
        "cluster": {**asdict(plan.cluster), "type": asdict(plan.cluster.type)},
        "assumed": assumptions(),
        "object_store": plan.object_store,
        "stages": {stage.placed.stage: _stage(stage) for stage in plan.stages},
        "change": plan.change,
        "nodes_that_suffice": None if plan.larger is None else plan.larger.nodes,
    }


def assumptions() -> dict[str, float]:
    """Assumptions of the plan that were not measured: allowances in bytes, fractions of data sheets' rates."""
    allowances = {"process_bytes": PROCESS, "asleep_bytes": ASLEEP, "graphs_bytes": GRAPHS}
    return {**{f"share_{name}": share for name, share in SHARES.items()}, **allowances}


def _stage(stage: StagePlan) -> dict[str, Any]:
    placed, engine = stage.placed, stage.placed.engine
    return {
        "strategy": placed.strategy,
        "models": {member.role: _model(member, placed.offload_modes) for member in placed.members},
        "places": [asdict(slot) for slot in placed.slots],
        "memory": {use.role: _use(use) for use in placed.uses},
        "shared_memory": [_use(use) for use in placed.shared],
        "kv_cache": None if engine is None else {"tokens": engine.kv_tokens, "sequences_at_once": engine.at_once},
        "engine_limits": None if engine is None else asdict(engine.limits),
        "batch": {**asdict(stage.batch), "length": stage.batch.length},
        "checkpoint_bytes": stage.checkpoint_bytes,
        "seconds": stage.seconds,
        "step_seconds": stage.step_seconds if stage.seconds else None,
        "problems": list(placed.problems),
    }


def _model(member: PlannedRole, modes: Mapping[str, OffloadMode]) -> dict[str, Any]:
    return {
        "shape": member.shape.name,
        "parameters": member.parameters,
        "trained": member.trained,
        "ranks": member.config.ranks,
        "sequence_parallel": member.config.sequence_parallel,
        "tensor_parallel": member.config.tensor_parallel,
        "zero_stage": member.config.zero_stage,
        "offload": member.config.offload,
        "offload_between_phases": modes.get(member.role, "none"),
    }


def _use(use: Use) -> dict[str, Any]:
    return {
        "phases": {phase: {**asdict(memory), "total": memory.total} for phase, memory in use.phases.items()},
        "fullest": use.worst,
        "capacity": use.capacity,
        "margin": use.margin,
        "host_bytes_per_rank": use.host,
    }
