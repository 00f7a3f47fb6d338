"""The plan of a recipe on a cluster: slots, memory, time and batches of each stage, and what does not fit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from launch.plan import memory as bytes_of
from launch.plan import timing
from launch.plan.cluster import Cluster
from launch.plan.members import ENGINE, PlannedRole, PlannedSlot, Shapes, assign_slots, indivisible_heads, members
from launch.plan.memory import ASLEEP, GIB, NOTHING, EngineMemory, GPUMemory
from launch.plan.object_store import snapshot_size
from launch.plan.work import StepWork, batch_of, longest, row_tokens
from rlhf.config.named_files import STAGE_DATA
from rlhf.config.schema import Recipe, Stage
from rlhf.config.stages import stages_of
from rlhf.errors import UserError
from rlhf.generation.limits import gpu_limits
from rlhf.placement.machine import Machine as Asked
from rlhf.placement.machine import check_devices, choose_strategy, gpus_needed
from rlhf.placement.pools import HELD_OUT_SCORER, NodeGPUs, OffloadMode, Sharing, offload_modes, pools, sharing
from rlhf.validate import validate

PHASES = {"ppo": ("rollout", "score", "update", "publish")}
"""Stage → phases of a step; other stages have only ``update``."""
EVERY_ROLE = "all roles"
MANY = 10**6


@dataclass(frozen=True, kw_only=True)
class Use:
    """Memory of a role, or of all roles together, on the fullest of its GPUs."""

    role: str
    parameters: int
    ranks: int
    phases: dict[str, GPUMemory]
    waiting: dict[str, GPUMemory]
    """Memory in each phase while another role of that phase works."""
    capacity: int
    """Bytes of the GPU."""
    host: int = 0
    """Bytes of host memory for offloading, per rank."""
    roles: tuple[str, ...] = ()
    """Roles in this sum, if it is one."""

    @property
    def worst(self) -> str:
        """The phase with the largest memory."""
        return max(self.phases, key=lambda phase: self.phases[phase].total)

    @property
    def margin(self) -> int:
        """Bytes left in that phase; negative if it does not fit."""
        return self.capacity - self.phases[self.worst].total


@dataclass(frozen=True, kw_only=True)
class Placed:
    """Slots and memory of a stage. ``missing`` is the number of requested GPUs that the cluster lacks."""

    stage: Stage
    strategy: str
    members: tuple[PlannedRole, ...]
    slots: tuple[PlannedSlot, ...]
    uses: tuple[Use, ...]
    """Memory of each role."""
    shared: tuple[Use, ...]
    """Memory of the roles that share GPUs, for each set of such roles."""
    engine: EngineMemory | None
    offload_modes: dict[str, OffloadMode]
    """Role → state that it offloads to host memory between its phases."""
    problems: tuple[str, ...]
    missing: int

    @property
    def excess(self) -> int:
        """Bytes by which the stage does not fit."""
        return sum(max(0, -use.margin) for use in self.must_fit)

    @property
    def must_fit(self) -> tuple[Use, ...]:
        """The uses that must fit: roles that share GPUs together, the others separately."""
        together = {role for use in self.shared for role in use.roles}
        return (*(use for use in self.uses if use.role not in together), *self.shared)


@dataclass(frozen=True, kw_only=True)
class StagePlan:
    """Plan of a stage. ``seconds`` are by phase, then by part; empty if the stage does not fit."""

    placed: Placed
    batch: StepWork
    seconds: dict[str, dict[str, float]]

    @property
    def checkpoint_bytes(self) -> int:
        """Bytes of a checkpoint: all ranks' parts of every trained model."""
        return sum(snapshot_size(member) for member in self.placed.members)

    @property
    def step_seconds(self) -> float:
        """Seconds of a whole step with its phases in sequence, as with ``ppo.staleness`` 0."""
        return sum(phase_seconds(phase, parts) for phase, parts in self.seconds.items())


def check(recipe: Recipe, stage: Stage) -> None:
    """Check that some cluster can run the recipe. Data may be absent: a plan reads none.

    Raises:
        UserError: lists every problem found.
    """
    if recipe.placement.device == "cpu":
        raise UserError("placement.device = cpu", "a plan is for GPUs", "placement.device=auto, at least for the plan")
    own: dict[str, Any] = dict.fromkeys(STAGE_DATA.values())
    data = replace(recipe.data, path="any/data", **own)
    validate(replace(recipe, data=data), stage, Asked(gpus=MANY, cpus=MANY))


def place(recipe: Recipe, stage: Stage, cluster: Cluster, shapes: Shapes) -> Placed:
    """Compute slots and memory of one stage."""
    found = members(recipe, stage, shapes)
    strategy = choose_strategy(recipe, stage, cluster.total)
    wanted = pools(recipe, stage, strategy)
    residents = [pool.roles for pool in wanted if pool.shared]
    guests = {role for roles in residents for role in roles}
    modes = offload_modes(recipe, stage, wanted)
    engine = _engine(recipe, cluster, shapes) if stage == "ppo" else None
    shares = sharing(wanted, modes)
    uses = tuple(
        _use(recipe, stage, member, cluster, modes.get(member.role, "none"), shares.get(member.role, Sharing()))
        for member in found
    )
    if engine is not None:
        uses += (_engine_use(recipe, engine, shapes, cluster, ENGINE in guests),)
    together = tuple(
        _together([use for use in uses if use.role in roles], EVERY_ROLE if strategy == "colocated" else None)
        for roles in residents
    )
    machine = Asked(gpus=cluster.total, cpus=MANY, nodes=(NodeGPUs(gpus=cluster.gpus),) * cluster.nodes)
    problems = [error.what for error in check_devices(recipe, stage, machine)]
    problems += [error.what for member in found for error in indivisible_heads(member)]
    problems += _engine_problems(recipe, engine, shapes) if engine is not None else []
    placed = Placed(
        stage=stage,
        strategy=strategy,
        members=found,
        slots=assign_slots(recipe, stage, cluster),
        uses=uses,
        shared=together,
        engine=engine,
        offload_modes=modes,
        problems=tuple(problems),
        missing=max(0, gpus_needed(recipe, stage, strategy) - cluster.total),
    )
    too_full = tuple(_too_full(use) for use in placed.must_fit if use.margin < 0)
    return replace(placed, problems=(*too_full, *placed.problems))


def plan_stage(recipe: Recipe, stage: Stage, cluster: Cluster, shapes: Shapes) -> StagePlan:
    """Plan one stage."""
    placed = place(recipe, stage, cluster, shapes)
    batch = batch_of(recipe, stage, placed.members)
    seconds = {} if placed.problems or not placed.slots else _seconds(recipe, placed, batch, cluster, shapes)
    return StagePlan(placed=placed, batch=batch, seconds=seconds)


def planned_stages(recipe: Recipe, stage: Stage) -> tuple[Stage, ...]:
    """The stages that a command runs."""
    return stages_of(recipe, stage)  # type: ignore[return-value]


def _use(
    recipe: Recipe, stage: Stage, member: PlannedRole, cluster: Cluster, mode: OffloadMode, shares: Sharing
) -> Use:
    """Memory of one role."""
    dtype, names = recipe.model.dtype, PHASES.get(stage, ("update",))
    waiting = bytes_of.waiting_memory(member, dtype, mode)
    phases = {phase: _working(recipe, stage, member, phase, mode, shares) or waiting for phase in names}
    return Use(
        role=member.role,
        parameters=member.parameters,
        ranks=member.config.ranks,
        phases=phases,
        waiting=dict.fromkeys(names, waiting),
        capacity=cluster.type.memory,
        host=bytes_of.host_bytes(member, dtype, mode),
    )


def _working(
    recipe: Recipe, stage: Stage, member: PlannedRole, phase: str, mode: OffloadMode, shares: Sharing
) -> GPUMemory | None:
    """Memory of a role in a phase in which it works; None in other phases.

    Scoring overlaps generation, except for roles on the engines' GPUs. There only the held-out scorer scores while the
    engines hold their memory.
    """
    dtype = recipe.model.dtype
    held = bytes_of.persistent_memory(member, dtype)
    if phase == "update":
        rows = row_tokens(recipe, stage, member)
        return held + bytes_of.update_memory(member, recipe.model, rows) if member.trained else None
    away = NOTHING if mode == "none" else bytes_of.update_states(member, dtype)
    if phase == "publish":
        return (held + bytes_of.publish_memory(member, dtype)).without(away) if member.role == "policy" else None
    if phase == "rollout" and shares.is_after_rollout and member.role != HELD_OUT_SCORER:
        return None
    return (held + bytes_of.scoring_memory(member, recipe.model)).without(away)


def _engine(recipe: Recipe, cluster: Cluster, shapes: Shapes) -> EngineMemory:
    length, rollout, memory = sum(longest(recipe, "ppo")), recipe.rollout, cluster.type.memory
    limits = gpu_limits(rollout, length, cluster.gpu, memory)
    return bytes_of.engine_memory(shapes.policy, rollout, recipe.model.dtype, memory, length, limits)


def _engine_use(recipe: Recipe, engine: EngineMemory, shapes: Shapes, cluster: Cluster, shared: bool) -> Use:
    """An engine that shares its GPU sleeps in score and update, and is partly awake in a publish."""
    awake = engine.memory
    phases = dict.fromkeys(PHASES["ppo"], awake)
    if shared:
        asleep = GPUMemory(process=ASLEEP)
        phases |= {"score": asleep, "update": asleep, "publish": bytes_of.receiving_memory(awake)}
    else:
        phases["publish"] = awake + GPUMemory(buffers=bytes_of.SEND_BUFFERS * bytes_of.SEND_BUFFER)
    return Use(
        role=ENGINE,
        parameters=shapes.policy.parameters,
        ranks=recipe.rollout.engines,
        phases=phases,
        waiting=phases,
        capacity=cluster.type.memory,
    )


def _together(uses: Sequence[Use], name: str | None) -> Use:
    """Memory of roles that share GPUs, on the fullest: the GPU of their first ranks; each phase in its worst turn."""
    phases = {
        phase: max((_in_turn(uses, phase, use.role) for use in uses), key=lambda memory: memory.total)
        for phase in uses[0].phases
    }
    return Use(
        role=name or " + ".join(use.role for use in uses),
        roles=tuple(use.role for use in uses),
        parameters=sum(use.parameters for use in uses),
        ranks=max(use.ranks for use in uses),
        phases=phases,
        waiting=phases,
        capacity=uses[0].capacity,
        host=sum(use.host for use in uses),
    )


def _in_turn(uses: Sequence[Use], phase: str, working: str) -> GPUMemory:
    """Memory of all roles while one works."""
    return sum((use.phases[phase] if use.role == working else use.waiting[phase] for use in uses), NOTHING)


def _too_full(use: Use) -> str:
    total = use.phases[use.worst].total
    return (
        f"{use.role}: {total / GIB:.1f} GiB on a GPU in {use.worst}, and it has {use.capacity / GIB:.1f} "
        f"({-use.margin / GIB:.1f} too much)"
    )


def _engine_problems(recipe: Recipe, engine: EngineMemory, shapes: Shapes) -> list[str]:
    problems, length = [], sum(longest(recipe, "ppo"))
    if not engine.at_once:
        problems.append(
            f"rollout: the KV cache of an engine holds {engine.kv_tokens:,} tokens, less than a sequence of {length:,}"
        )
    if shapes.policy.heads % recipe.rollout.tensor_parallel:
        problems.append(
            f"rollout: {shapes.policy.heads} heads do not divide over {recipe.rollout.tensor_parallel} GPUs"
        )
    longest_stage = shapes.policy.context
    if length > longest_stage:
        problems.append(f"a sequence of {length:,} tokens is longer than the model's context of {longest_stage:,}")
    return problems


def _seconds(
    recipe: Recipe, placed: Placed, batch: StepWork, cluster: Cluster, shapes: Shapes
) -> dict[str, dict[str, float]]:
    machine = timing.ComputeRates(cluster=cluster, slots=placed.slots, dtype=recipe.model.dtype)
    updates = {
        m.role: timing.update_seconds(m, batch, recipe, machine)
        + timing.offload_seconds(m, _offload_mode(placed, m), machine)
        for m in placed.members
        if m.trained
    }
    if placed.stage != "ppo":
        return {"update": updates}
    assert placed.engine is not None
    policy = placed.members[0]
    scores = {
        m.role: timing.score_seconds(m, batch, machine)
        + timing.offload_seconds(m, _offload_mode(placed, m), machine, weights_alone=True)
        for m in placed.members
        if m.role in batch.score_passes
    }
    if not recipe.has_reference:
        scores["policy, adapters off"] = scores["policy"]
        if recipe.algorithm.old_logprobs == "update":
            del scores["policy"]
    return {
        "rollout": timing.rollout_seconds(shapes.policy, placed.engine, batch, recipe, machine),
        "score": _on_own_gpus(scores, placed),
        "update": _on_own_gpus(updates, placed),
        "publish": timing.publish_seconds(policy, recipe, any(ENGINE in use.roles for use in placed.shared), machine),
    }


def _offload_mode(placed: Placed, member: PlannedRole) -> OffloadMode:
    return placed.offload_modes.get(member.role, "none")


def _on_own_gpus(seconds: dict[str, float], placed: Placed) -> dict[str, float]:
    """Combine the seconds of roles that share GPUs, because they wait for each other."""
    for use in placed.shared:
        own = {role: value for role, value in seconds.items() if role.partition(",")[0] in use.roles}
        rest = {role: value for role, value in seconds.items() if role not in own}
        seconds = {**rest, **({use.role: sum(own.values())} if own else {})}
    return seconds


def phase_seconds(phase: str, parts: dict[str, float]) -> float:
    """Seconds of a phase: its parts run in sequence in rollout and publish, and in parallel elsewhere."""
    return sum(parts.values()) if phase in ("rollout", "publish") else max(parts.values(), default=0.0)
