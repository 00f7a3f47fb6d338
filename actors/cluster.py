"""The Ray cluster of a run.

Joined when there is one, otherwise started for this machine alone and ended with the run.
"""

from __future__ import annotations

import os
import secrets
import signal
import tempfile
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import ray
from ray._private import ray_constants
from ray._private.state import available_resources_per_node

from rlhf.errors import MachineryError
from rlhf.placement.pools import NodeGPUs
from rlhf.recovery.stop import AskedToStop

LOCAL = "127.0.0.1"
OBJECT_STORE_BYTES = 512 * 2**20
"""Object store of a Ray of our own on a machine without GPUs: several times the largest batch of such a machine."""

GPU_TYPE = "accelerator_type:"
"""Beginning of the resource by which Ray tells the type of a node's GPUs."""

SLOW = (
    "A machine that is short of processors or memory may be too slow for Ray, whose logs are in /tmp/ray: stop what "
    "else runs there and give the same command again. A cluster has to be up and of the same version (`ray status`)."
)
"""What to do where Ray does not start."""

MALLOC = ":".join(
    f"glibc.malloc.{name}={value}"
    for name, value in {
        "hugetlb": 1,  # pages of 2 MiB: with pages of 4 KiB a pass over a long row spends up to a fifth in page faults
        "arena_max": 1,  # one heap for all threads: the heaps of single threads do not ask for huge pages
        "mmap_threshold": 32 * 2**20,  # and smaller tensors come from that heap,
        "trim_threshold": 256 * 2**20,  # which keeps up to so many free bytes for the next pass
    }.items()
)
"""glibc's malloc in actors, set for large tensors that come and go (``make benchmark``, docs/results.md)."""

QUIET = {"log_to_driver": False, "logging_level": "ERROR"}


@contextmanager
def cluster(address: str | None, has_gpus: bool) -> Iterator[None]:
    """Have Ray within the block.

    A Ray of our own listens on 127.0.0.1, without a dashboard, with a token.
    """
    if address is not None:
        join(address)
    elif not ray.is_initialized():
        _start_own(has_gpus)
    try:
        yield
    finally:
        ray.shutdown()


def join(address: str) -> None:
    """Join a running cluster; joining twice is once."""
    with _started(f"no Ray cluster could be joined at {address}"), _own_signal():
        ray.init(address=address, ignore_reinit_error=True, **QUIET)


def _start_own(has_gpus: bool) -> None:
    # Ray takes 127.0.0.1 to mean "find this host's own address", unless it believes that it cannot be a cluster here.
    os.environ[ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR] = "0"
    ray_constants.ENABLE_RAY_CLUSTER = False
    with _started(f"Ray did not start on {LOCAL}"), _own_signal():
        make_token()
        ray.init(
            "local",  # a new one also where somebody else's runs on this machine
            _node_ip_address=LOCAL,
            include_dashboard=False,
            object_store_memory=None if has_gpus else OBJECT_STORE_BYTES,
            **QUIET,
        )


@contextmanager
def _started(otherwise: str) -> Iterator[None]:
    """Whatever fails within the block, Ray has not started: it raises ``Exception`` itself where it is too slow for it.

    Raises:
        MachineryError: begins with ``otherwise``, and tells what to do.
    """
    try:
        yield
    except Exception as error:
        with suppress(Exception):  # of what did start nothing stays
            ray.shutdown()
        lines = str(error).strip().splitlines() or [""]
        raise MachineryError(f"{otherwise}: {type(error).__name__}: {lines[0]}. {SLOW}") from error


@contextmanager
def _own_signal() -> Iterator[None]:
    """Ray makes an exit of SIGTERM, which a scheduler takes for a failure: the handler that was there stays."""
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    except SystemExit:
        if callable(before):
            raise AskedToStop from None
        raise
    finally:
        if callable(before) and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, before)


def make_token() -> None:
    """Make the token that Ray would make where it finds none, for this user's eyes alone: Ray lets the umask decide."""
    elsewhere = os.environ.get("RAY_AUTH_TOKEN") or os.environ.get("RAY_AUTH_TOKEN_PATH")
    file = Path.home() / ".ray" / "auth_token"
    if elsewhere or os.environ.get("RAY_AUTH_MODE", "token").lower() != "token" or file.exists():
        return
    file.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile("w", dir=file.parent, prefix=".auth_token-") as made:  # mode 0600 from the start
        made.write(secrets.token_hex(32))
        made.flush()
        with suppress(FileExistsError):  # another run was faster; whoever reads it finds a whole token, or none
            os.link(made.name, file)


def nodes() -> list[dict[str, Any]]:
    """The living nodes of the cluster, as Ray describes them."""
    return [node for node in ray.nodes() if node["Alive"]]


def node_gpus(resources: Mapping[str, float]) -> NodeGPUs:
    """GPUs of a node, and their type, which Ray shows as a resource of its own."""
    kinds = [name.removeprefix(GPU_TYPE) for name in resources if name.startswith(GPU_TYPE)]
    return NodeGPUs(gpus=int(resources.get("GPU", 0)), type=kinds[0] if kinds else None)


def free_gpus() -> dict[str, NodeGPUs]:
    """Whole GPUs that nobody has reserved, by the id of their node."""
    free = available_resources_per_node()
    there = {node["NodeID"]: node["Resources"] for node in nodes() if node["NodeID"] in free}
    return {name: node_gpus({**have, "GPU": free[name].get("GPU", 0)}) for name, have in there.items()}


def node_address() -> str:
    """The address of the node that the calling actor is on, as Ray knows it: 127.0.0.1 in a Ray of our own."""
    here = ray.get_runtime_context().get_node_id()
    return next(str(node["NodeManagerAddress"]) for node in nodes() if node["NodeID"] == here)


def worker_environment(threads: int, own_ray: bool) -> dict[str, str]:
    """Environment of every actor: threads bounded before any library starts its own, and this driver's import path."""
    kept = ("HF_HUB_OFFLINE", "HF_HOME", "CUDA_HOME", "NCCL_SOCKET_IFNAME", "GLOO_SOCKET_IFNAME")
    return {
        **{key: os.environ[key] for key in kept if key in os.environ},
        **({"GLOO_SOCKET_IFNAME": "lo"} if own_ray and "GLOO_SOCKET_IFNAME" not in os.environ else {}),
        "OMP_NUM_THREADS": str(threads),
        "GLIBC_TUNABLES": os.environ.get("GLIBC_TUNABLES", MALLOC),
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "PYTHONPATH": os.pathsep.join([str(Path.cwd()), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep),
    }
