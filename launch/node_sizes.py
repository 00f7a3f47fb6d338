"""Sizes of a cluster's nodes for a recipe, from its plan: how many, Ray's object store, and memory.

``python -m launch.node_sizes object-store COMMAND RECIPE [key.path=value ...]`` prints the bytes of the object store of
a node of this machine's kind, for ``launch/slurm.sh``; nothing if the plan cannot tell.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rlhf.errors import RLHFError, UserError

if TYPE_CHECKING:
    from rlhf.config.schema import Recipe, Stage

GIB = 2**30
SPARE_SHARED = 8 * GIB
"""Shared memory beside the object store: buffers of NCCL and of data loaders."""
HEAD_STORE = 2 * GIB
"""Object store of a head on which no role is placed."""
MOST_WORKERS = 1024
DAEMONS = 4 * GIB
"""Memory for the other pods of a node: the network, the log collector, the GPU's device plugin."""
KERNEL_SHARE = 0.03
"""Share of a machine's memory that its kernel does not offer."""


@dataclass(frozen=True, kw_only=True)
class NodeSizes:
    """What a run takes of a cluster whose workers are equal."""

    workers: int
    """Least number of workers."""
    object_store: int
    """Bytes of Ray's object store on a worker."""
    memory: int
    """Bytes of a worker's memory: processes, offloaded state, and the object store."""
    runs: int = 0
    """Bytes of checkpoints and models that the run writes; 0 if the plan cannot tell."""

    @property
    def shared_memory(self) -> int:
        """Bytes of a worker's ``/dev/shm``."""
        return self.object_store + SPARE_SHARED


def node_sizes(
    recipe: Recipe, command: Stage, *, gpus: int, cpus: int, workers: int = 0, object_store: int = 0
) -> NodeSizes:
    """Sizes for a recipe on workers with ``gpus`` GPUs each.

    Args:
        workers: their number; 0: as few as suffice.
        object_store: bytes of the object store; 0: the plan's.

    Raises:
        UserError: no number of such workers suffices, or a model's shape is unknown and ``object_store`` is not given.
    """
    from launch.doctor.needs import Hardware, needs_of
    from launch.plan.object_store import store_for

    count = workers or _fewest(recipe, command, gpus, cpus)
    needs = needs_of(recipe, command, Hardware(nodes=count, cpus=cpus, gpus=gpus))
    if needs is None and object_store:
        return NodeSizes(workers=count, object_store=object_store, memory=object_store)
    if needs is None:
        raise UserError(
            f"the plan does not know the shape of the models of {recipe.name!r}",
            "the sizes of memory and volumes follow from it",
            "give object_store_gib=..., or a model folder with a config.json",
        )
    store = object_store or store_for(needs.snapshots)
    memory = needs.host + store - needs.snapshots
    return NodeSizes(workers=count, object_store=store, memory=memory, runs=needs.room.total)


def _fewest(recipe: Recipe, command: Stage, gpus: int, cpus: int) -> int:
    """Least number of workers on which all stages can be placed."""
    from launch.plan.plan import planned_stages
    from rlhf.placement.machine import Machine, check_devices
    from rlhf.placement.pools import NodeGPUs

    if not gpus:
        return 1
    stages, problems = planned_stages(recipe, command), [""]
    for count in range(1, MOST_WORKERS + 1):
        machine = Machine(gpus=count * gpus, cpus=cpus, nodes=(NodeGPUs(gpus=gpus),) * count)
        problems = [error.what for stage in stages for error in check_devices(recipe, stage, machine)]
        if not problems:
            return count
    raise UserError(f"{recipe.name!r} does not fit {MOST_WORKERS} workers with {gpus} GPUs", problems[0])


def allocatable_memory(machine: int) -> int:
    """Bytes that a pod can request of a machine with ``machine`` bytes: less the kernel, kubelet and other pods.

    kubelet's part is the largest of those that GKE, AKS and EKS document: 25% of the first 4 GiB, 20% of the next 4,
    10% of the next 8, 6% of the next 112, 2% of the rest.
    """
    left, reserved = machine, 0.0
    for size, share in ((4, 0.25), (4, 0.2), (8, 0.1), (112, 0.06), (1 << 20, 0.02)):
        part = min(left, size * GIB)
        reserved, left = reserved + share * part, left - part
    return int(machine * (1 - KERNEL_SHARE) - reserved - DAEMONS)


def allocatable_cpus(machine: int) -> int:
    """Cores that a pod can request: less about 2% for kubelet and other pods, and at least one."""
    return machine - max(1, -(-machine // 50))


def main(arguments: Sequence[str]) -> int:
    """Print the size; returns 0 even if there is none, because the run itself reports what is wrong."""
    from rlhf.config.load import load_recipe

    _, command, recipe, *overrides = arguments
    gpus, cpus = int(os.environ.get("SLURM_GPUS_ON_NODE") or 0), os.cpu_count() or 1
    workers = int(os.environ.get("SLURM_JOB_NUM_NODES") or 1)
    try:
        sizes = node_sizes(load_recipe(Path(recipe), overrides), command, gpus=gpus, cpus=cpus, workers=workers)  # type: ignore[arg-type]
    except RLHFError as error:
        print(f"launch.node_sizes: Ray's default object store: {str(error).splitlines()[0]}", file=sys.stderr)
        return 0
    print(sizes.object_store)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
