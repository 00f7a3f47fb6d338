"""Checks a recipe's requested processes and GPUs against the machine or cluster."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from rlhf.config.schema import Recipe, Stage
from rlhf.errors import UserError
from rlhf.placement.pools import ENGINES, NodeGPUs, Pool, Strategy, asked, pack, pools

GIB = 2**30
CPU_PROCESSES = 16
"""Largest number of ranks and engines per core without GPUs; with more, all of them would miss their deadlines."""


@dataclass(frozen=True, kw_only=True)
class Machine:
    """Hardware that a recipe is checked against: a machine, or a whole cluster."""

    gpus: int
    """Total number of GPUs."""
    cpus: int
    """CPU cores of the smallest node."""
    nodes: tuple[NodeGPUs, ...] = ()
    """GPUs of each node of a cluster; empty for a single machine."""
    context_length: int | None = None
    """Context length of the model of ``model.path``, in tokens; None if it is not known yet."""
    memory: int | None = None
    """Bytes of host memory that a run's processes may take, if it is a single machine and this is known."""


def uses_gpus(recipe: Recipe, machine: Machine) -> bool:
    """Whether the run computes on GPUs."""
    return recipe.placement.device == "cuda" or (recipe.placement.device == "auto" and machine.gpus > 0)


def gpus_by_role(recipe: Recipe, stage: Stage) -> dict[str, int]:
    """GPUs that each role of a stage requests if it shares none; parts of a reward count as one role."""
    found: dict[str, int] = {}
    for role in asked(recipe, stage):
        name = role.key if role.role.startswith("reward ") else role.role
        found[name] = found.get(name, 0) + role.gpus
    return found


def choose_strategy(recipe: Recipe, stage: Stage, gpus: int) -> Strategy:
    """The placement strategy; ``auto`` is separate if the GPUs suffice, otherwise colocated.

    Without GPUs every rank is a separate CPU process, and the strategy is separate.
    """
    strategy = recipe.placement.strategy
    if strategy != "auto":
        return strategy
    apart = gpus == 0 or gpus_needed(recipe, stage, "separate") <= gpus or shares(recipe)
    return "separate" if apart else "colocated"


def shares(recipe: Recipe) -> bool:
    """Whether the recipe sets which roles share GPUs; this takes precedence over the choice for ``auto``."""
    place = recipe.placement
    return any(each.share_with for each in (place.policy, place.critic, place.reference, place.reward, place.rollout))


def gpus_needed(recipe: Recipe, stage: Stage, strategy: Strategy) -> int:
    """GPUs of the whole run; a shared pool counts with its largest role."""
    return sum(pool.gpus for pool in pools(recipe, stage, strategy))


def check_devices(recipe: Recipe, stage: Stage, machine: Machine) -> Iterator[UserError]:
    """Yield one error for each requested resource that the machine does not have."""
    place = recipe.placement
    if place.threads_per_rank > machine.cpus:
        yield UserError(
            f"placement.threads_per_rank = {place.threads_per_rank} and there are {machine.cpus} CPU cores",
            "threads that wait for each other's core slow every rank down",
            f"placement.threads_per_rank={machine.cpus} or less",
        )
    if not uses_gpus(recipe, machine):
        yield from _cpu_processes(recipe, stage, machine)
        yield from _cpu_engines(recipe, stage)
        yield from _cpu_caches(recipe, stage, machine)
    elif machine.gpus == 0:
        yield UserError(
            "placement.device = cuda and there is no GPU",
            "no CUDA device is visible here",
            "placement.device=cpu, or a machine with a GPU",
        )
    else:
        yield from _too_few_gpus(recipe, stage, machine)


def _cpu_processes(recipe: Recipe, stage: Stage, machine: Machine) -> Iterator[UserError]:
    roles = gpus_by_role(recipe, stage)
    if recipe.placement.ray_address is None and sum(roles.values()) > CPU_PROCESSES * machine.cpus:
        asked = ", ".join(f"{role} {count}" for role, count in roles.items())
        yield UserError(
            f"the run needs {sum(roles.values())} processes ({asked}) and there are {machine.cpus} CPU cores",
            "without GPUs every rank and every engine is a process",
            "lower placement.<role>.ranks or rollout.engines: one a core is plenty",
        )


def _cpu_engines(recipe: Recipe, stage: Stage) -> Iterator[UserError]:
    if stage in ("ppo", "pipeline") and recipe.rollout.tensor_parallel > 1:
        yield UserError(
            f"rollout.tensor_parallel = {recipe.rollout.tensor_parallel} without GPUs",
            "an engine on the CPU is one process",
            "rollout.tensor_parallel=1; rollout.engines sets how many engines there are",
        )


def _cpu_caches(recipe: Recipe, stage: Stage, machine: Machine) -> Iterator[UserError]:
    rollout = recipe.rollout
    asked = rollout.engines * rollout.memory_gib
    if stage in ("ppo", "pipeline", "generate") and machine.memory is not None and asked > machine.memory / GIB:
        yield UserError(
            f"rollout.memory_gib = {rollout.memory_gib:g} with rollout.engines = {rollout.engines}, and this machine "
            f"has {machine.memory / GIB:.1f} GiB of memory",
            "without GPUs each engine reserves its KV cache in the host's memory, beside the models",
            "lower rollout.memory_gib: 1 GiB is plenty for a small model, and the models need memory too",
        )


def _too_few_gpus(recipe: Recipe, stage: Stage, machine: Machine) -> Iterator[UserError]:
    strategy = choose_strategy(recipe, stage, machine.gpus)
    yield from _wide_engines(recipe, stage, machine)
    wanted = pools(recipe, stage, strategy)
    for pool in wanted:
        if pool.shared and ENGINES in pool.roles:
            yield from _shared_engines(recipe, "colocated roles" if strategy == "colocated" else "shared GPUs")
        yield from _wrong_type(pool, machine)
    needed = gpus_needed(recipe, stage, strategy)
    if needed > machine.gpus:
        table = _gpu_table(recipe, stage, machine, strategy)
        what = f"the run needs {needed} GPUs and there are {machine.gpus}\n{table}"
        yield UserError(what, fix=_fewer_gpus(recipe, stage, machine))
    elif machine.nodes and pack(wanted, machine.nodes) is None:
        table = _node_table(wanted, machine)
        what = f"the run's {needed} GPUs are there, but not where they are needed\n{table}"
        why = "the GPUs of an engine are in one node, and each is of the type that was asked for"
        yield UserError(what, why, "lower rollout.tensor_parallel or the ranks, or set another gpu_type")


def _wide_engines(recipe: Recipe, stage: Stage, machine: Machine) -> Iterator[UserError]:
    width, largest = recipe.rollout.tensor_parallel, max((node.gpus for node in machine.nodes), default=machine.gpus)
    if stage in ("ppo", "pipeline", "generate") and machine.nodes and width > largest:
        yield UserError(
            f"rollout.tensor_parallel = {width} and the largest node has {largest} GPUs",
            "the GPUs of one engine are in one node",
            f"rollout.tensor_parallel={largest} or less",
        )


def _shared_engines(recipe: Recipe, sharing: str) -> Iterator[UserError]:
    """Errors of engines on shared GPUs, which sleep while other roles use them."""
    rollout, ranks = recipe.rollout, recipe.placement.policy.ranks
    if rollout.tensor_parallel > 1:
        yield UserError(
            f"rollout.tensor_parallel = {rollout.tensor_parallel} with {sharing}",
            "every GPU is shared by one rank of each role, and an engine of several GPUs is not yet placed over them",
            "rollout.tensor_parallel=1 with more rollout.engines, or engines with GPUs of their own",
        )
    if rollout.engines > ranks:
        yield UserError(
            f"rollout.engines = {rollout.engines} and placement.policy.ranks = {ranks}, with {sharing}",
            "an engine takes its weights from the policy rank on the same GPU",
            f"rollout.engines={ranks}, or as many policy ranks as engines",
        )
    if recipe.model.engine_lora is not None:
        yield UserError(
            f"model.lora.publish = adapter with {sharing}",
            "the engines sleep while the others compute, and lose the base model, which is sent once",
            "model.lora.publish=merged, or engines with GPUs of their own",
        )
    if recipe.ppo.staleness:
        yield UserError(
            f"ppo.staleness = {recipe.ppo.staleness} with {sharing}",
            "the engines sleep while the others train on the same GPUs",
            "ppo.staleness=0, or engines with GPUs of their own",
        )


def _wrong_type(pool: Pool, machine: Machine) -> Iterator[UserError]:
    if pool.gpu_type is None:
        return
    there = sorted({node.type for node in machine.nodes if node.type})
    if pool.gpu_type not in there:
        yield UserError(
            f"placement.{pool.members[0].key}.gpu_type = {pool.gpu_type!r} and there is no such GPU",
            f"the cluster has {', '.join(there)}" if there else "no type is known outside a cluster",
            "a type that `ray status` names after accelerator_type:, or null",
        )


def _gpu_table(recipe: Recipe, stage: Stage, machine: Machine, strategy: Strategy) -> str:
    rows: list[tuple[str, object]] = [("role", "asked"), *gpus_by_role(recipe, stage).items()]
    rows += [(strategy, gpus_needed(recipe, stage, strategy)), ("there", machine.gpus)]
    lines = [f"    {name:<12}{gpus:>6}" for name, gpus in rows]
    lines[-2] += f"  ({_sharing(pools(recipe, stage, strategy), strategy)})"
    return "\n".join(lines)


def _sharing(wanted: tuple[Pool, ...], strategy: Strategy) -> str:
    if strategy == "colocated":
        return "all roles share every GPU"
    sharing = [f"{', '.join(pool.roles[1:])} with {pool.name}" for pool in wanted if pool.shared]
    return f"shared: {'; '.join(sharing)}" if sharing else "each role owns its GPUs"


def _node_table(wanted: tuple[Pool, ...], machine: Machine) -> str:
    lines = [f"    {', '.join(pool.roles)}: {pool.slots} x {pool.width} {pool.gpu_type or ''}" for pool in wanted]
    lines += [f"    node {i}: {node.gpus} {node.type or ''}" for i, node in enumerate(machine.nodes)]
    return "\n".join(line.rstrip() for line in lines)


def _fewer_gpus(recipe: Recipe, stage: Stage, machine: Machine) -> str:
    fix = "lower the ranks, rollout.engines or rollout.tensor_parallel, or add GPUs"
    shared = gpus_needed(recipe, stage, "colocated")
    if choose_strategy(recipe, stage, machine.gpus) == "separate" and shared <= machine.gpus:
        return f"placement.strategy=colocated needs {shared}; or {fix}"
    return fix
