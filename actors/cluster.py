"""The Ray cluster of a run.

Joined when there is one, otherwise started for this machine alone and ended with the run.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import ray

from rlhf.errors import MachineryError

LOCAL = "127.0.0.1"
OBJECT_STORE_BYTES = 512 * 2**20
"""Object store of a Ray of our own on a machine without GPUs: several times the largest batch of such a machine."""


@contextmanager
def cluster(address: str | None, has_gpus: bool) -> Iterator[None]:
    """Have Ray within the block.

    A Ray of our own listens on 127.0.0.1, without a dashboard, with the token that Ray makes for it.
    """
    if ray.is_initialized():
        yield
        return
    try:
        _start(address, has_gpus)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise MachineryError(f"Ray did not start or could not be joined at {address or LOCAL}: {error}") from error
    try:
        yield
    finally:
        ray.shutdown()


def _start(address: str | None, has_gpus: bool) -> None:
    quiet = {"log_to_driver": False, "logging_level": "ERROR"}
    if address is not None:
        ray.init(address=address, **quiet)
        return
    ray.init(
        _node_ip_address=LOCAL,
        include_dashboard=False,
        object_store_memory=None if has_gpus else OBJECT_STORE_BYTES,
        **quiet,
    )


def cluster_gpus() -> int:
    """GPUs of the whole cluster."""
    return int(ray.cluster_resources().get("GPU", 0))


def node_address() -> str:
    """The address of the node that the calling actor is on, as Ray knows it: 127.0.0.1 in a Ray of our own."""
    here = ray.get_runtime_context().get_node_id()
    return next(str(node["NodeManagerAddress"]) for node in ray.nodes() if node["NodeID"] == here)


def worker_environment(threads: int) -> dict[str, str]:
    """Environment of every actor: threads bounded before any library starts its own, and this driver's import path."""
    kept = ("HF_HUB_OFFLINE", "HF_HOME", "CUDA_HOME", "NCCL_SOCKET_IFNAME", "GLOO_SOCKET_IFNAME")
    return {
        **{key: os.environ[key] for key in kept if key in os.environ},
        "OMP_NUM_THREADS": str(threads),
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "PYTHONPATH": os.pathsep.join([str(Path.cwd()), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep),
    }
