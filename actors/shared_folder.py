"""Checks that all nodes see the folder of the runs: ranks write models and their shards of checkpoints themselves."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from actors.cluster import node_gpus, nodes, worker_environment

START_SECONDS = 60.0
"""How long a node may take to start a task. A node that takes longer, or dies, is not reported here."""
SEE_SECONDS = 10.0
"""How long a node may take to see the file: network file systems cache directories."""


@contextmanager
def marker(folder: Path) -> Iterator[Path]:
    """Context in which a file exists in a folder, or in its nearest parent that exists.

    Raises:
        OSError: the file cannot be created.
    """
    existing = next(each for each in (folder, *folder.parents) if each.is_dir())
    handle, name = tempfile.mkstemp(prefix=".rlhf-seen-", dir=existing)
    os.close(handle)  # some file systems show a file to other nodes only once it is closed
    try:
        yield Path(name)
    finally:
        Path(name).unlink(missing_ok=True)


def nodes_without_folder(folder: Path, has_gpus: bool, types: Collection[str] = ()) -> list[str]:
    """Names of the nodes that can run actors and do not see a folder of this machine.

    Args:
        has_gpus: whether actors run on GPUs, or else on CPUs.
        types: types of GPUs that actors may use; empty: any.

    Raises:
        OSError: the folder cannot be written to.
    """
    resource = "GPU" if has_gpus else "CPU"
    compute = {node["NodeID"]: node for node in nodes() if node["Resources"].get(resource, 0) > 0}
    if has_gpus and types:
        compute = {name: node for name, node in compute.items() if node_gpus(node["Resources"]).type in types}
    task = ray.remote(num_cpus=0, max_retries=0, runtime_env={"env_vars": worker_environment(1, own_ray=False)})(
        _can_see
    )
    with marker(folder) as file:
        asked = {
            task.options(scheduling_strategy=NodeAffinitySchedulingStrategy(name, soft=False)).remote(file): node
            for name, node in compute.items()
        }
        done, _ = ray.wait(list(asked), num_returns=len(asked), timeout=START_SECONDS) if asked else ([], [])
        unseen = [asked[ref] for ref in done if _is_false(ref)]
        return [f"{node['NodeManagerHostname']} {node['NodeManagerAddress']}" for node in unseen]


def _can_see(file: Path) -> bool:
    end = time.monotonic() + SEE_SECONDS
    while not _exists(file):
        if time.monotonic() > end:
            return False
        time.sleep(0.2)
    return True


def _exists(file: Path) -> bool:
    try:
        return file.exists()
    except OSError:  # no permission, or the file server does not answer
        return False


def _is_false(ref: ray.ObjectRef) -> bool:
    try:
        return not ray.get(ref)
    except RayError:
        return False
