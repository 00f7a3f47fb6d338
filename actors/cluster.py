"""The Ray cluster of a run: an existing one is joined, otherwise a local one is started and ended with the run."""

from __future__ import annotations

import atexit
import os
import secrets
import signal
import socket
import sys
import tempfile
import threading
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from resource import RLIM_INFINITY, RLIMIT_FSIZE, getrlimit
from typing import Any

import psutil
import ray
from ray._private import ray_constants, services
from ray._private.state import available_resources_per_node
from ray._private.utils import estimate_available_memory, resolve_object_store_memory

from actors.fork_client import RAYLET
from actors.fork_server import executable
from actors.lean_node import lean_ray
from actors.ray_watch import Address, RayProcess, RayWatch, agents_of
from rlhf.config.schema import PlacementConfig
from rlhf.device import Device
from rlhf.environment import forwarded
from rlhf.errors import ClusterError, MachineryError
from rlhf.placement.pools import NodeGPUs
from rlhf.recovery.facts import shared_memory
from rlhf.recovery.leaving import leave
from rlhf.recovery.leftovers import folders
from rlhf.recovery.reaper import Reaper, end_sessions, remove_orphans
from rlhf.recovery.stop import AskedToStop

LOCAL = "127.0.0.1"
OWN_RAY = {ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR: "0"}
"""Variables of a local Ray's processes. Ray replaces 127.0.0.1 by the host's external address, unless it believes that
clusters are not supported here."""
MARK = {"RLHF_LOCAL_RAY": "1"}
"""Variable by which other commands recognise a local Ray's processes."""
LEAST_STORE = 512 * 2**20
"""Least bytes of the object store of a local Ray, wherever they are."""
MOST_OF_ROOM = 0.9
"""Largest fraction that a local Ray's object store takes of the free shared memory, and of a file's largest size."""

GPU_TYPE = "accelerator_type:"
"""Prefix of the resource that names the type of a node's GPUs."""

CONNECT_SECONDS = 10.0
"""For a connection to a running cluster."""
SLOW = (
    "A machine that is short of CPUs or memory may be too slow for Ray, whose logs are in /tmp/ray: stop what "
    "else runs there and give the same command again. A cluster has to be up, with the same version (`ray status`)."
)
"""Advice for the case that Ray does not start."""

MALLOC = ":".join(
    f"glibc.malloc.{name}={value}"
    for name, value in {
        "hugetlb": 1,  # 2 MiB pages: page faults cost up to 20% of a pass with 4 KiB pages
        "arena_max": 1,  # one arena: per-thread arenas do not use huge pages
        "mmap_max": 0,  # large tensors use the arena too: each new mapping would be filled with zeros again
        "trim_threshold": 2**30,  # keep up to 1 GiB free for reuse
    }.items()
)
"""Settings of glibc's malloc in actors, for large tensors that are often allocated and freed (docs/performance.md)."""

INLINED_BYTES = 1000
"""Largest result that an actor returns in its message; larger ones stay in the object store of the actor's node.

By Ray's default blocks and their scores, which are under 100 KB, would all be kept by the controller. Markers and the
summary of a block are smaller.
"""

REGISTER_SECONDS = 600
"""Deadline of a local Ray for a worker's first message: a forked one sends it after the server's imports."""

CLOSED = {"RAY_enable_metrics_collection": "0", "DASHBOARD_METRIC_PORT": "65536", "AUTOSCALER_METRIC_PORT": "65536"}
"""Variables that keep Ray's Prometheus servers closed, which require no token; ``launch/files.py`` has the same."""

QUIET = {"log_to_driver": False, "logging_level": "ERROR"}
RAYLET_NAME = "raylet"
NEEDED = {ray_constants.PROCESS_TYPE_RAYLET: RAYLET_NAME, ray_constants.PROCESS_TYPE_GCS_SERVER: "GCS"}
"""Processes of Ray without which no actor can be reached, and their names in messages."""
GCS_FLAG = "--gcs-address="
"""Option of Ray's processes that names the cluster to which they belong."""
SPILLED = ray_constants.DEFAULT_OBJECT_PREFIX
"""Beginning of the names of folders to which a raylet spills objects."""


@contextmanager
def cluster(address: str | None, watch: RayWatch | None = None, sessions: Collection[int] = ()) -> Iterator[None]:
    """Context in which Ray is available.

    Without ``address``, a local Ray is started, unless Ray is initialised already: it listens on 127.0.0.1, without a
    dashboard, with token authentication on every port. Nothing of it is left afterwards, also if this process is
    killed.

    Args:
        watch: watches Ray's own processes. After a failure of Ray, Ray is left alone and only its processes are ended.
        sessions: sessions of other processes that end with a local Ray: its actors', if they are forked ahead of it.
    """
    if address is None and not ray.is_initialized():
        with _own_ray(watch, sessions):
            yield
        return
    if address is not None:
        join(address)
    try:
        with watch.watching(_joined_processes(), _logs(), _gcs_address(), _session()) if watch else nullcontext():
            yield
    finally:
        _shut_down(watch)


@contextmanager
def _own_ray(watch: RayWatch | None, others: Collection[int]) -> Iterator[None]:
    """Context of a local Ray, whose processes are ended with it, or by a process that outlives this one."""
    reaper, is_up = Reaper(folders()), False
    try:
        for session in others:
            reaper.add_session(session)
        _start_own(reaper)
        is_up = True
        reaper.add_spilled(f"{_node().get_session_dir_path()}/{SPILLED}_*")
        needed = [each for each in _own_processes() if each.name in NEEDED.values()]
        agents = [agent for each in needed if each.name == RAYLET_NAME for agent in agents_of(each.process)]
        with watch.watching([*needed, *agents], _logs(), paths=_session()) if watch else nullcontext():
            yield
    finally:
        with nullcontext() if is_up else suppress(Exception):  # why it has not started is raised
            _shut_down(watch)
        if end_sessions(reaper.sessions):
            remove_orphans(folders())
            reaper.dismiss()


def _shut_down(watch: RayWatch | None) -> None:
    """Disconnect from Ray, and end a local one; after a failure of Ray that could end this process, or never return."""
    if watch is None or watch.failure is None:
        ray.shutdown()
    else:
        atexit.register(leave, ClusterError.exit_code)  # before the handler of Ray, which is older


def _node() -> Any:
    """Ray's description of the node that this process is connected to."""
    return ray._private.worker._global_node


def _logs() -> Path:
    return Path(_node().get_logs_dir_path())


def _session() -> list[Path]:
    """What a new process of Ray needs of the session's folder on this node."""
    return [_logs(), *(Path(socket) for socket in (_node().raylet_socket_name, _node().plasma_store_socket_name))]


def _own_processes() -> list[RayProcess]:
    """Processes of Ray that this process has started."""
    return [
        RayProcess(name=NEEDED.get(kind, kind), process=info.process.pid, code=info.process.poll)
        for kind, started in _node().all_processes.items()
        for info in started
    ]


def _joined_processes() -> list[RayProcess]:
    """The raylet of this node, to which this process is connected, and its agents; none if it is another user's."""
    socket = _node().raylet_socket_name
    for process in _raylets():
        if any(socket in word for word in process.info["cmdline"] or ()):
            found = RayProcess(name=RAYLET_NAME, process=process.pid)
            return [found, *agents_of(found.process)]
    return []


def _raylets() -> Iterator[psutil.Process]:
    """The raylets of this machine, with ``cmdline`` and ``environ`` in ``info``: None if another user's."""
    every = psutil.process_iter(["name", "cmdline", "environ"])
    return (process for process in every if process.info["name"] == RAYLET_NAME)


def _gcs_address() -> Address:
    host, _, port = _node().gcs_address.rpartition(":")
    return host, int(port)


def join(address: str) -> None:
    """Join a running cluster, unless it is joined already.

    Raises:
        MachineryError: there is none at this address.
    """
    with _started(f"no Ray cluster could be joined at {address}"), _own_signal():
        if not ray.is_initialized():
            address = _running_cluster() if address == "auto" else address
            _prepare_to_join(address)
        os.environ[RAYLET] = str(os.getpid())
        ray.init(address=address, ignore_reinit_error=True, **QUIET)


def _running_cluster() -> str:
    """Address of the cluster of this node.

    Unlike Ray, this passes over the local Rays of other commands, which those end with themselves. If there are
    several clusters, it is that of the last ``ray start``.

    Raises:
        ConnectionError: there is none.
    """
    if named := os.environ.get(ray_constants.RAY_ADDRESS_ENVIRONMENT_VARIABLE):
        return named
    found, local = set(services.find_gcs_addresses()), set()
    for process in _raylets():
        if MARK.items() <= (process.info["environ"] or {}).items():
            local |= {word.removeprefix(GCS_FLAG) for word in process.info["cmdline"] if word.startswith(GCS_FLAG)}
    last, others = services.find_bootstrap_address(None), sorted(found - local)
    if not others:
        raise ConnectionError(f"none runs on this machine{', but for those of other commands' if local else ''}")
    return last if last in others else others[0]


def _prepare_to_join(address: str) -> None:
    """Check that something listens at an address, for which Ray would wait for minutes, deaf to signals.

    A head that listens on this machine only is known to Ray by another address, unless it believes that clusters are
    not supported here.

    Raises:
        OSError: nothing listens there.
    """
    host, _, port = address.rpartition(":")
    host = host.rpartition("/")[2].strip("[]")
    if not port.isdigit():
        return  # a mistake, which Ray reports
    if services.is_localhost(host):
        os.environ.update(OWN_RAY)
        ray_constants.ENABLE_RAY_CLUSTER = False
    socket.create_connection((host, int(port)), timeout=CONNECT_SECONDS).close()


def _start_own(reaper: Reaper) -> None:
    """Start a local Ray; the reaper learns of each of its processes."""
    os.environ.update(OWN_RAY | MARK)
    ray_constants.ENABLE_RAY_CLUSTER = False
    for name, value in CLOSED.items():
        os.environ.setdefault(name, value)
    with _started(f"Ray did not start on {LOCAL}"), _own_signal(), _own_sessions(reaper.add_session), lean_ray():
        make_token()
        os.environ[RAYLET] = str(os.getpid())
        ray.init(
            "local",  # start a new one even if another user's runs on this machine
            _node_ip_address=LOCAL,
            include_dashboard=False,
            object_store_memory=_object_store(),
            _system_config={
                "prestart_worker_first_driver": False,  # one process per core, which no actor here can use
                "worker_register_timeout_seconds": REGISTER_SECONDS,
            },
            **QUIET,
        )


def _object_store() -> int:
    """Bytes of a local Ray's object store: Ray's default, as far as shared memory and the limit of a file's size allow.

    Ray would put the whole store on a disk if it did not fit, and with a lower limit would not start.
    """
    room = [found[0]] if (found := shared_memory()) else []
    if (limit := getrlimit(RLIMIT_FSIZE)[0]) != RLIM_INFINITY:
        room.append(limit)
    bounds = (int(MOST_OF_ROOM * each) for each in room)
    return max(LEAST_STORE, min(resolve_object_store_memory(estimate_available_memory()), *bounds))


@contextmanager
def _started(otherwise: str) -> Iterator[None]:
    """Context of Ray's start; any exception means that Ray has not started (it raises plain ``Exception`` on timeouts).

    Raises:
        MachineryError: the message begins with ``otherwise`` and ends with advice.
    """
    try:
        yield
    except Exception as error:
        with suppress(Exception):  # end processes that did start
            ray.shutdown()
        lines = str(error).strip().splitlines() or [""]
        raise MachineryError(f"{otherwise}: {type(error).__name__}: {lines[0]}. {SLOW}") from error


@contextmanager
def _own_signal() -> Iterator[None]:
    """Keeps the caller's SIGTERM handler: Ray's handler exits with a code that schedulers count as a failure.

    Where a signal arrives in a callback around a fork, Python ignores that exit, and only reports it: the caller's
    handler is then called once Ray has started.
    """
    before, report = signal.getsignal(signal.SIGTERM), sys.unraisablehook
    ignored_exits = list[object]()

    def notice(unraisable: sys.UnraisableHookArgs) -> None:
        if issubclass(unraisable.exc_type, (SystemExit, AskedToStop)):
            ignored_exits.append(unraisable.object)
        else:
            report(unraisable)

    sys.unraisablehook = notice
    try:
        yield
    except SystemExit:
        if callable(before):
            raise AskedToStop(signal.SIGTERM.name) from None
        raise
    finally:
        sys.unraisablehook = report
        if callable(before) and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, before)
    if ignored_exits and callable(before):
        before(signal.SIGTERM, None)


@contextmanager
def _own_sessions(notice: Callable[[int], object]) -> Iterator[None]:
    """Context in which each process of Ray gets a session of its own, which its descendants share.

    A signal to this command's process group, by a terminal or by ``timeout``, would end Ray during the last checkpoint.
    ``notice`` gets the id of each session.
    """
    before = services.ConsolePopen

    def start(*arguments: Any, **options: Any) -> Any:
        process = before(*arguments, start_new_session=True, **options)
        notice(process.pid)
        return process

    services.ConsolePopen = start
    try:
        yield
    finally:
        services.ConsolePopen = before


def make_token() -> None:
    """Create Ray's authentication token if none exists, readable by this user only: Ray uses the umask."""
    elsewhere = os.environ.get("RAY_AUTH_TOKEN") or os.environ.get("RAY_AUTH_TOKEN_PATH")
    file = Path.home() / ".ray" / "auth_token"
    if elsewhere or os.environ.get("RAY_AUTH_MODE", "token").lower() != "token" or file.exists():
        return
    file.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile("w", dir=file.parent, prefix=".auth_token-") as made:  # mode 0600 from the start
        made.write(secrets.token_hex(32))
        made.flush()
        with suppress(FileExistsError):  # another run was faster; the link makes the whole token appear at once
            os.link(made.name, file)


def nodes() -> list[dict[str, Any]]:
    """Nodes of the cluster that are alive, as described by Ray."""
    return [node for node in ray.nodes() if node["Alive"]]


def node_gpus(resources: Mapping[str, float]) -> NodeGPUs:
    """Number and type of a node's GPUs; Ray lists the type as a separate resource."""
    kinds = [name.removeprefix(GPU_TYPE) for name in resources if name.startswith(GPU_TYPE)]
    return NodeGPUs(gpus=int(resources.get("GPU", 0)), type=kinds[0] if kinds else None)


def free_gpus() -> dict[str, NodeGPUs]:
    """Whole GPUs that are not reserved, by node id."""
    free = available_resources_per_node()
    total = {node["NodeID"]: node["Resources"] for node in nodes() if node["NodeID"] in free}
    return {name: node_gpus({**resources, "GPU": free[name].get("GPU", 0)}) for name, resources in total.items()}


def node_address() -> str:
    """Address of the calling actor's node, as registered in Ray: 127.0.0.1 in a local Ray."""
    here = ray.get_runtime_context().get_node_id()
    return next(str(node["NodeManagerAddress"]) for node in nodes() if node["NodeID"] == here)


def runtime_environment(
    place: PlacementConfig, device: Device, modules: Iterable[str], variables: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """Ray's runtime environment of an actor that computes.

    Args:
        modules: what the process has imported when it starts, if processes are forked.
        variables: environment variables beside those of ``worker_environment``.
    """
    is_own = place.ray_address is None
    environment = {**worker_environment(place.threads_per_rank, is_own), **(variables or {})}
    method = place.start_method or ("fork" if is_own and device == "cpu" else "spawn")
    return {"env_vars": environment, **({"py_executable": executable(modules)} if method == "fork" else {})}


def worker_environment(threads: int, own_ray: bool) -> dict[str, str]:
    """Environment variables of every actor: limits on threads, which libraries read at import, and the import path."""
    return {
        **forwarded(os.environ),
        **{key: os.environ[key] for key in ("CUDA_HOME",) if key in os.environ},
        **({"GLOO_SOCKET_IFNAME": "lo"} if own_ray and "GLOO_SOCKET_IFNAME" not in os.environ else {}),
        "RAY_max_direct_call_object_size": str(INLINED_BYTES),
        "OMP_NUM_THREADS": str(threads),
        # Waiting threads soon sleep: spinning takes cores from other processes, and makes an engine that shares its
        # cores with other actors several times slower (docs/results.md).
        "GOMP_SPINCOUNT": os.environ.get("GOMP_SPINCOUNT", "10000"),
        "GLIBC_TUNABLES": os.environ.get("GLIBC_TUNABLES", MALLOC),
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "PYTHONPATH": os.pathsep.join([str(Path.cwd()), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep),
    }
