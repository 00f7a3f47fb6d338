"""Computes a recipe's needs on each node with the formulas of ``launch/plan``, and checks its plan against the GPUs.

The nodes of ranks are the plan's estimate, so every node is checked against the needs of the fullest.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from launch.doctor.disk import Room
from launch.doctor.findings import GIB, Finding, failed, ok, warning
from launch.doctor.gpus import GPU
from launch.plan import memory as bytes_of
from launch.plan.cluster import Cluster
from launch.plan.members import ENGINE, PlannedRole, PlannedSlot, Shapes, assign_slots, members
from launch.plan.memory import PROCESS, size_of
from launch.plan.object_store import snapshot_size, snapshots_on_fullest_node
from launch.plan.plan import place, planned_stages
from launch.plan.work import row_tokens
from rlhf.config.schema import Recipe, Stage
from rlhf.errors import UserError
from rlhf.gpus import GPUS, gpu_named
from rlhf.placement.machine import Machine, check_devices, choose_strategy
from rlhf.placement.pools import NodeGPUs, OffloadMode, offload_modes, pools

CHUNK = 256 * 2**20
"""Chunk of weights on its way to engines without GPUs: ``CHUNK_BYTES`` of ``rlhf/weights/shared_memory.py``, which
imports torch. There are two at a time."""
ENGINE_PROCESSES = 2
"""Processes per engine: its own, and its actor."""


@dataclass(frozen=True, kw_only=True)
class Hardware:
    """Hardware on which a run is placed."""

    nodes: int
    cpus: int
    """CPUs of the smallest node."""
    gpus: int = 0
    """Least number of GPUs of the nodes that have any."""
    gpu: GPU | None = None

    @property
    def cluster(self) -> Cluster | None:
        """The cluster for a plan; None without GPUs, or with a GPU type that the plan does not know."""
        name = None if self.gpu is None else gpu_named(self.gpu.name, self.gpu.memory)
        if name is None:
            return None
        return Cluster(nodes=self.nodes, gpus=self.gpus, gpu=name, network=GPUS[name].network)


@dataclass(frozen=True, kw_only=True)
class Needs:
    """Bytes that a run takes of its fullest node, and of the disk."""

    host: int
    """Host memory: processes, offloaded state, snapshots; without GPUs also all models."""
    snapshots: int
    """Bytes of Ray's object store."""
    room: Room


def needs_of(recipe: Recipe, stage: Stage, hardware: Hardware) -> Needs | None:
    """Needs of a command; None if a model's shape is unknown, which ``check_plan`` reports."""
    try:
        return _needs(recipe, stage, hardware)
    except UserError:
        return None


def _needs(recipe: Recipe, stage: Stage, hardware: Hardware) -> Needs:
    shapes, stages = Shapes(recipe), planned_stages(recipe, stage)
    found = {each: members(recipe, each, shapes) for each in stages}
    nodes = [_by_node(recipe, each, found[each], shapes, hardware) for each in stages]
    policy = size_of(recipe.model.dtype) * shapes.policy.parameters
    return Needs(
        host=max(host + snapshots for host, snapshots in nodes),
        snapshots=max(snapshots for _, snapshots in nodes),
        room=_room(recipe, found, policy),
    )


def _by_node(
    recipe: Recipe, stage: Stage, found: tuple[PlannedRole, ...], shapes: Shapes, hardware: Hardware
) -> tuple[int, int]:
    """Host memory of the fullest node, and most bytes of snapshots on a node."""
    roles = {member.role: member for member in found}
    modes = offload_modes(
        recipe, stage, pools(recipe, stage, choose_strategy(recipe, stage, hardware.nodes * hardware.gpus))
    )
    host: Counter[int] = Counter()
    slots = _slots(recipe, stage, found, hardware)
    for slot in slots:
        member = roles.get(slot.role)
        if member is None:
            host[slot.node] += _engine(recipe, shapes, hardware)
        else:
            host[slot.node] += _rank(recipe, stage, member, hardware, modes.get(member.role, "none"))
    return max(host.values()), snapshots_on_fullest_node(found, slots)


def _slots(recipe: Recipe, stage: Stage, found: tuple[PlannedRole, ...], hardware: Hardware) -> tuple[PlannedSlot, ...]:
    """Slots according to the plan; distributed over the nodes in turn if there are no or too few GPUs."""
    if hardware.gpus:
        cluster = Cluster(nodes=hardware.nodes, gpus=hardware.gpus, gpu=next(iter(GPUS)), network=1.0)
        if placed := assign_slots(recipe, stage, cluster):
            return placed
    asked = [(member.role, rank) for member in found for rank in range(member.config.ranks)]
    asked += [(ENGINE, rank) for rank in range(recipe.rollout.engines)] if stage == "ppo" else []
    return tuple(
        PlannedSlot(role=role, rank=rank, node=index % hardware.nodes, gpus=())
        for index, (role, rank) in enumerate(asked)
    )


def _rank(recipe: Recipe, stage: Stage, member: PlannedRole, hardware: Hardware, mode: OffloadMode) -> int:
    if hardware.gpus:
        dtype = recipe.model.dtype
        return PROCESS + bytes_of.host_bytes(member, dtype, mode) + bytes_of.snapshot_bytes(member, dtype, mode)
    held, tokens = bytes_of.persistent_memory(member, recipe.model.dtype), row_tokens(recipe, stage, member)
    trains = bool(member.trained)
    added = (
        bytes_of.pass_memory(member, recipe.model, tokens) if trains else bytes_of.scoring_memory(member, recipe.model)
    )
    bucket = _bucket(member) if trains else 0
    chunks = min(2 * CHUNK, size_of(recipe.model.dtype) * member.parameters) if member.role == "policy" else 0
    return held.total + added.activations + added.logits + bucket + (chunks if stage == "ppo" else 0)


def _bucket(member: PlannedRole) -> int:
    """DeepSpeed's gradient buffer, which takes memory only as far as gradients fill it."""
    return 4 * min(bytes_of.BUCKET, member.trained)


def _engine(recipe: Recipe, shapes: Shapes, hardware: Hardware) -> int:
    processes = ENGINE_PROCESSES * PROCESS
    if hardware.gpus:
        return processes + (recipe.rollout.tensor_parallel - 1) * PROCESS
    weights = size_of(recipe.model.dtype) * shapes.policy.parameters
    return processes + 2 * weights + int(recipe.rollout.memory_gib * GIB)  # weights are repacked beside their originals


def _room(recipe: Recipe, found: dict[Stage, tuple[PlannedRole, ...]], policy: int) -> Room:
    """Needs of disk space if every stage writes checkpoints; ``early_stop`` keeps a second model."""
    keep = recipe.checkpoint
    checkpoints = [sum(map(snapshot_size, each)) for each in found.values()]
    trained = [each[0] for each in found.values()]
    models = sum(size_of(recipe.model.dtype) * member.parameters for member in trained)
    best = policy if recipe.early_stop is not None and "ppo" in found else 0
    kept = keep.keep_last + keep.keep_best + 1
    return Room(checkpoint=max(checkpoints), checkpoints=kept * sum(checkpoints), models=models + best)


def check_plan(recipe: Recipe, stage: Stage, hardware: Hardware) -> Finding:
    """Check that the hardware suffices for the recipe: the number of GPUs, and their memory if the type is known.

    A model of unknown shape may still run, so its memory is not counted.
    """
    try:
        problems = _missing_gpus(recipe, stage, hardware) or _memory_problems(recipe, stage, hardware)
    except UserError as error:
        return warning(f"{_describe_hardware(hardware)}; the models' memory was not counted: {error.what}", error.fix)
    if problems:
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        return failed(problems[0].splitlines()[0] + more, _fix(hardware))
    return ok(_describe_hardware(hardware))


def _describe_hardware(hardware: Hardware) -> str:
    if not hardware.gpus:
        nodes = (
            "1 node without GPUs suffices" if hardware.nodes == 1 else f"{hardware.nodes} nodes without GPUs suffice"
        )
        return f"{nodes} for CPU processes; cores of the smallest: {hardware.cpus}"
    known = hardware.cluster.gpu if hardware.cluster else "of no type that the plan knows, so memory was not counted"
    return f"{hardware.nodes} × {hardware.gpus} GPUs suffice ({known})"


def _missing_gpus(recipe: Recipe, stage: Stage, hardware: Hardware) -> list[str]:
    """GPUs that are requested and missing."""
    total = hardware.nodes * hardware.gpus
    machine = Machine(gpus=total, cpus=hardware.cpus, nodes=(NodeGPUs(gpus=hardware.gpus),) * hardware.nodes)
    stages = planned_stages(recipe, stage)
    errors = [error.what for each in stages for error in check_devices(recipe, each, machine)]
    return list(dict.fromkeys(errors))


def _memory_problems(recipe: Recipe, stage: Stage, hardware: Hardware) -> list[str]:
    """Roles that do not fit their GPUs."""
    cluster, shapes = hardware.cluster, Shapes(recipe)
    if cluster is None or recipe.placement.device == "cpu":
        return []
    problems = [place(recipe, each, cluster, shapes).problems for each in planned_stages(recipe, stage)]
    return list(dict.fromkeys(problem for each in problems for problem in each))


def _fix(hardware: Hardware) -> str:
    cluster = hardware.cluster
    if not hardware.gpus:
        return "placement.device=cpu and fewer or smaller processes, or machines with GPUs"
    if cluster is None:
        return "run `rlhf plan` for the smallest change that fits"
    text = f"nodes={cluster.nodes},gpus={cluster.gpus},gpu={cluster.gpu}"
    return f"`rlhf plan` with --cluster {text} names the smallest change that fits"
