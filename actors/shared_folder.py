"""Whether all nodes see the folder of the runs: ranks write models and their parts of a checkpoint themselves."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from actors.cluster import nodes, worker_environment

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
    with tempfile.NamedTemporaryFile(prefix=".rlhf-seen-", dir=place) as made:
        yield Path(made.name)


def blind_nodes(folder: Path, has_gpus: bool) -> list[str]:
    """Names of the nodes that may be given actors and do not see a folder of this machine.

    Raises:
        OSError: it cannot be written to.
    """
    resource = "GPU" if has_gpus else "CPU"
    compute = {node["NodeID"]: node for node in nodes() if node["Resources"].get(resource, 0) > 0}
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
    while not file.exists():
        if time.monotonic() > end:
            return False
        time.sleep(0.2)
    return True


def _no(ref: ray.ObjectRef) -> bool:
    try:
        return not ray.get(ref)
    except RayError:
        return False
