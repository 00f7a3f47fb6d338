"""Whether all nodes see the folder of the runs: ranks write models and their parts of a checkpoint themselves."""

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
"""How long a node may take to start a process of ours. One that takes longer, or dies, is left to who needs it."""
SEE_SECONDS = 10.0
"""Network file systems show a new file only after a while."""


@contextmanager
def marker(folder: Path) -> Iterator[Path]:
    """A file in a folder, or in the nearest above it that is there, for as long as the block takes.

    Raises:
        OSError: none can be made there.
    """
    place = next(each for each in (folder, *folder.parents) if each.is_dir())
    handle, name = tempfile.mkstemp(prefix=".rlhf-seen-", dir=place)
    os.close(handle)  # some file systems show a file to others only then
    try:
        yield Path(name)
    finally:
        Path(name).unlink(missing_ok=True)


def blind_nodes(folder: Path, has_gpus: bool, types: Collection[str] = ()) -> list[str]:
    """Names of the nodes that may be given actors and do not see a folder of this machine.

    Args:
        types: of the GPUs that actors may be given; any where there is none.

    Raises:
        OSError: it cannot be written to.
    """
    resource = "GPU" if has_gpus else "CPU"
    compute = {node["NodeID"]: node for node in nodes() if node["Resources"].get(resource, 0) > 0}
    if has_gpus and types:
        compute = {name: node for name, node in compute.items() if node_gpus(node["Resources"]).type in types}
    sees = ray.remote(num_cpus=0, max_retries=0, runtime_env={"env_vars": worker_environment(1, own_ray=False)})(_sees)
    with marker(folder) as file:
        asked = {
            sees.options(scheduling_strategy=NodeAffinitySchedulingStrategy(name, soft=False)).remote(file): node
            for name, node in compute.items()
        }
        done, _ = ray.wait(list(asked), num_returns=len(asked), timeout=START_SECONDS) if asked else ([], [])
        return [f"{asked[ref]['NodeManagerHostname']} {asked[ref]['NodeManagerAddress']}" for ref in done if _no(ref)]


def _sees(file: Path) -> bool:
    end = time.monotonic() + SEE_SECONDS
    while not _is_there(file):
        if time.monotonic() > end:
            return False
        time.sleep(0.2)
    return True


def _is_there(file: Path) -> bool:
    try:
        return file.exists()
    except OSError:  # it may not be entered, or its server is away
        return False


def _no(ref: ray.ObjectRef) -> bool:
    try:
        return not ray.get(ref)
    except RayError:
        return False
