"""What a run asks of the machine or cluster, what is there, and whether that is enough."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from rlhf.config.schema import Recipe
from rlhf.errors import UserError

Stage = Literal["sft", "reward", "dpo", "ppo", "pipeline", "generate"]
Strategy = Literal["colocated", "separate"]

CPU_PROCESSES = 16
"""Ranks and engines for each core of a machine without GPUs, at most: waiting for each other, all would be late."""


@dataclass(frozen=True, kw_only=True)
class Machine:
    """What a recipe is checked against: a machine, or a cluster as a whole."""

    gpus: int
    """GPUs in all."""
    cpus: int
    """CPU cores of the smallest node."""
    gpus_per_node: int | None = None
    """GPUs of the largest node; ``None`` where all are in one."""
    context_length: int | None = None
    """Longest sequence in tokens that the model of ``model.path`` takes; ``None`` where it is not known yet."""


def uses_gpus(recipe: Recipe, machine: Machine) -> bool:
    """Whether the run computes on GPUs."""
    return recipe.placement.device == "cuda" or (recipe.placement.device == "auto" and machine.gpus > 0)


def gpus_by_role(recipe: Recipe, stage: Stage) -> dict[str, int]:
    """GPUs that each role of a stage asks for. A pipeline asks for those of PPO, enough for its other stages too."""
    place = recipe.placement
    if stage in ("sft", "dpo"):
        return {"policy": place.policy.ranks}
    if stage == "reward":
        return {"reward": place.reward.ranks}
    if stage == "generate":
        return {"rollout": recipe.rollout.engines * recipe.rollout.tensor_parallel}
    roles = {"policy": place.policy.ranks}
    if recipe.algorithm.has_critic:
        roles["critic"] = place.critic.ranks
    if recipe.has_reference:
        roles["reference"] = place.reference.ranks
    if recipe.reward_models:
        roles["reward"] = place.reward.ranks * len(recipe.reward_models)
    if recipe.early_stop is not None and recipe.early_stop.scorer.model is not None:
        roles["judge"] = place.reward.ranks
    return {**roles, "rollout": recipe.rollout.engines * recipe.rollout.tensor_parallel}


def choose_strategy(recipe: Recipe, stage: Stage, gpus: int) -> Strategy:
    """The placement strategy with ``auto`` decided: separate where the GPUs suffice, otherwise colocated.

    Without GPUs every role is a CPU process of its own, which is separate.
    """
    asked = recipe.placement.strategy
    if asked != "auto":
        return asked
    return "separate" if gpus == 0 or sum(gpus_by_role(recipe, stage).values()) <= gpus else "colocated"


def gpus_needed(recipe: Recipe, stage: Stage, strategy: Strategy) -> int:
    """GPUs of the whole run: the largest role's when roles share them, otherwise the sum."""
    roles = gpus_by_role(recipe, stage).values()
    return max(roles) if strategy == "colocated" else sum(roles)


def check_devices(recipe: Recipe, stage: Stage, machine: Machine) -> Iterator[UserError]:
    """One error for each thing that the run asks of the machine and the machine does not have."""
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
    elif machine.gpus == 0:
        yield UserError(
            "placement.device = cuda and there is no GPU",
            "no CUDA device is visible here",
            "placement.device=auto or cpu",
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


def _too_few_gpus(recipe: Recipe, stage: Stage, machine: Machine) -> Iterator[UserError]:
    tensor_parallel, place = recipe.rollout.tensor_parallel, recipe.placement
    if stage in ("ppo", "pipeline") and machine.gpus_per_node is not None and tensor_parallel > machine.gpus_per_node:
        yield UserError(
            f"rollout.tensor_parallel = {tensor_parallel} and the largest node has {machine.gpus_per_node} GPUs",
            "the GPUs of one engine are in one node",
            f"rollout.tensor_parallel={machine.gpus_per_node} or less",
        )
    strategy = choose_strategy(recipe, stage, machine.gpus)
    if stage in ("ppo", "pipeline") and strategy == "colocated" and tensor_parallel > 1:
        yield UserError(
            f"rollout.tensor_parallel = {tensor_parallel} with colocated roles",
            "every GPU is shared by one rank of each role, and an engine of several GPUs is not yet placed over them",
            "rollout.tensor_parallel=1 with more rollout.engines, or placement.strategy=separate with GPUs enough",
        )
    if stage in ("ppo", "pipeline") and strategy == "colocated" and recipe.rollout.engines > place.policy.ranks:
        yield UserError(
            f"rollout.engines = {recipe.rollout.engines} and placement.policy.ranks = {place.policy.ranks}, colocated",
            "an engine takes its weights from the policy rank on the same GPU",
            f"rollout.engines={place.policy.ranks}, or as many policy ranks as engines",
        )
    if stage in ("ppo", "pipeline") and strategy == "colocated" and recipe.ppo.staleness:
        yield UserError(
            f"ppo.staleness = {recipe.ppo.staleness} with colocated roles",
            "the engines sleep while the others train on the same GPUs",
            "ppo.staleness=0, or placement.strategy=separate with GPUs enough",
        )
    needed = gpus_needed(recipe, stage, strategy)
    if needed > machine.gpus:
        table = _gpu_table(recipe, stage, machine, strategy)
        what = f"the run needs {needed} GPUs and there are {machine.gpus}\n{table}"
        yield UserError(what, fix=_fewer_gpus(recipe, stage, machine))


def _gpu_table(recipe: Recipe, stage: Stage, machine: Machine, strategy: Strategy) -> str:
    sharing = "all roles share every GPU" if strategy == "colocated" else "each role owns its GPUs"
    rows = [("role", "asked"), *gpus_by_role(recipe, stage).items()]
    rows += [(strategy, gpus_needed(recipe, stage, strategy)), ("there", machine.gpus)]
    lines = [f"    {name:<12}{gpus:>6}" for name, gpus in rows]
    lines[-2] += f"  ({sharing})"
    return "\n".join(lines)


def _fewer_gpus(recipe: Recipe, stage: Stage, machine: Machine) -> str:
    fix = "lower the ranks, rollout.engines or rollout.tensor_parallel, or add GPUs"
    shared = gpus_needed(recipe, stage, "colocated")
    if choose_strategy(recipe, stage, machine.gpus) == "separate" and shared <= machine.gpus:
        return f"placement.strategy=colocated needs {shared}; or {fix}"
    return fix
