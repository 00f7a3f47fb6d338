"""Checks of a node's memory: the host's, the limit of its container or job, and ``/dev/shm``."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

import psutil

from launch.doctor.findings import GIB, Finding, failed, gib, not_applicable, ok, warning
from rlhf.recovery.facts import CGROUP, cgroup_memory

OWN_GROUP = Path("/proc/self/cgroup")
LEAST_SHARED = GIB
"""Minimum size of ``/dev/shm``: Docker's 64 MiB are too little for NCCL, vLLM and Ray."""
LEAST_HOST = 4 * GIB
"""Minimum of free host memory without a recipe: Ray, and one role with its libraries."""


@dataclass(frozen=True, kw_only=True)
class NodeMemory:
    """Memory of a node, in bytes."""

    host: int
    """Memory of the host, regardless of limits."""
    available: int
    """Available now, under all limits."""
    limit: int | None = None
    """Lowest limit of this process's control groups: a container's, or a job's under a scheduler."""
    shared: int = 0
    """Size of ``/dev/shm``."""
    shared_free: int = 0

    @property
    def total(self) -> int:
        """Memory that the processes under this limit may take in all."""
        return self.host if self.limit is None else min(self.host, self.limit)


def gather(own: Path = OWN_GROUP, cgroup: Path = CGROUP, shared: Path = Path("/dev/shm")) -> NodeMemory:
    """Gather the memory of this machine; ``own`` is the file that names this process's control group.

    Raises:
        OSError: there is no such file, or no ``/dev/shm``.
    """
    disk, host = shutil.disk_usage(shared), psutil.virtual_memory()
    found = [cgroup_memory(group) for group in _groups(own, cgroup)]
    return NodeMemory(
        host=host.total,
        available=min([host.available, *(left for _, left in found if left is not None)]),
        limit=min((limit for limit, _ in found if limit is not None), default=None),
        shared=disk.total,
        shared_free=disk.free,
    )


def _groups(own: Path, cgroup: Path) -> list[Path]:
    """Folders of this process's control group (version 2) and its ancestors."""
    lines = own.read_text(encoding="utf-8").splitlines()
    name = next((line[3:] for line in lines if line.startswith("0::")), "/")
    group = Path(os.path.normpath(f"{cgroup}/{name}"))
    return [each for each in (group, *group.parents) if each.is_relative_to(cgroup)]


def check_host(facts: NodeMemory, need: int | None) -> Finding:
    """Check that the memory suffices for the plan's processes on this node; ``need`` is None without a recipe."""
    found = f"{gib(facts.available)} free of {gib(facts.total)}"
    if need is None:
        if facts.available >= LEAST_HOST:
            return ok(found)
        return warning(f"{found}; Ray and one role take about {gib(LEAST_HOST)}", "end other programs on this node")
    found += f"; the plan needs {gib(need)} here"
    if need > facts.total:
        return failed(found, "fewer ranks or engines, less offload, more nodes, or more memory")
    if need > facts.available:
        return warning(found, "end other programs on this node before the run")
    return ok(found)


def check_limit(facts: NodeMemory, ray_counts: int | None) -> Finding:
    """Check that Ray respects the limit of its container or job, above which the kernel kills processes.

    Args:
        ray_counts: bytes that Ray offers on this node, including its object store; None if no Ray runs.
    """
    if facts.limit is None or facts.limit >= facts.host:
        return not_applicable(f"no limit below the host's {gib(facts.host)}")
    found = f"limit {gib(facts.limit)}, host {gib(facts.host)}"
    if ray_counts is not None and ray_counts > facts.limit:
        fix = "start Ray here with --memory and --object-store-memory that sum to less than the limit"
        return failed(f"{found}; Ray counts on {gib(ray_counts)}", fix)
    return ok(found)


def check_shared(facts: NodeMemory, store: int | None) -> Finding:
    """Check that ``/dev/shm`` fits Ray's object store.

    Args:
        store: bytes of the object store; None if no Ray runs yet, which will take what there is.
    """
    need = max(LEAST_SHARED, store or 0)
    found = f"{gib(facts.shared_free)} free of {gib(facts.shared)}"
    found += "" if store is None else f"; object store {gib(store)}"
    size = -(-need // GIB)
    if facts.shared < need:
        return failed(found, f"mount -o remount,size={size}g /dev/shm; in a container, --shm-size={size}g")
    if store is None and facts.shared_free < need:
        return warning(found, "remove unused files in /dev/shm: Ray would keep its objects on disk")
    return ok(found)


def check_store(store: int, snapshots: int) -> Finding:
    """Check that Ray's object store fits the snapshots from which a policy or critic is rebuilt.

    Args:
        store: its bytes on this node; snapshots: two of each rank at a time, on the fullest node.
    """
    found = f"{gib(store)}; snapshots take {gib(snapshots)} on the fullest node"
    if snapshots > store:
        return warning(f"{found}: Ray spills the rest to disk", "start Ray here with a larger --object-store-memory")
    return ok(found)
