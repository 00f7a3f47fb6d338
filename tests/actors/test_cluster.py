"""Tests of the local Ray: its token is never readable by other users."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from resource import RLIM_INFINITY
from statistics import median
from typing import Any

import psutil
import pytest
import ray
from ray._private import services
from ray.exceptions import RaySystemError, RpcError

from actors import cluster as own_ray
from actors.cluster import CLOSED, MALLOC, cluster, join, make_token, worker_environment
from launch import preflight
from launch.cli import main
from launch.files import ENVIRONMENT
from rlhf.errors import MachineryError
from rlhf.ports import free_port
from rlhf.recovery.facts import is_alive

ROOT = Path(__file__).parents[2]
START = """
import json, os, pathlib, psutil, ray, subprocess, sys
from actors.cluster import cluster, join, make_token
make_token()
file = pathlib.Path.home() / ".ray" / "auth_token"
made = file.read_text()
with cluster(None):
    answer = ray.get(ray.remote(lambda: "heard").remote())
    own = psutil.Process()
    sockets = [each for process in (own, *own.children(recursive=True)) for each in process.net_connections("tcp")]
    listening = [each.laddr for each in sockets if each.status == psutil.CONN_LISTEN]
    places = sorted({f"{each.ip.removeprefix('::ffff:')}:{each.port}" for each in listening})
    stranger = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    command = [sys.executable, "-m", "tests.launch.stranger", *places]
    found = subprocess.run(command, env=stranger, capture_output=True, text=True, check=True, timeout=60).stdout
print(answer, os.environ["RAY_AUTH_MODE"], oct(file.stat().st_mode), file.read_text() == made)
print(found)
"""

EARLY = """
import os, signal, sys, threading, time
from launch.cli import main
import launch.preflight
def kill():
    os.kill(os.getpid(), signal.SIGTERM)
def asked(*arguments):
    import ray
    from actors.cluster import cluster
    if {early}:
        threading.Timer(0.5, kill).start()
    with cluster(None):
        if not {early}:
            kill()
        time.sleep(60)
launch.preflight.prepare = asked
sys.exit(main(["sft", "recipes/quickstart.yaml", "placement.start_method=spawn"]))
"""
"""The signal comes while Ray starts or after it has, and before the run takes signals for itself."""


@pytest.fixture
def token(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Path of the token of a user who has none, with a umask that makes new files readable by everyone."""
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    before = os.umask(0)
    yield tmp_path / ".ray" / "auth_token"
    os.umask(before)


def test_it_is_closed_whole_and_alone(token: Path) -> None:
    make_token()
    assert stat.S_IMODE(token.stat().st_mode) == 0o600
    assert re.fullmatch("[0-9a-f]{64}", token.read_text())
    assert list(token.parent.iterdir()) == [token]


def test_one_that_is_there_is_left_alone(token: Path) -> None:
    token.parent.mkdir()
    token.write_text("mine")
    make_token()
    assert token.read_text() == "mine" and stat.S_IMODE(token.stat().st_mode) == 0o666


@pytest.mark.parametrize("name", ["RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"])
def test_none_is_made_where_another_is_named(name: str, token: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "other")
    make_token()
    assert not token.exists()


def test_none_is_made_where_ray_asks_for_none(token: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    make_token()
    assert not token.exists()


def test_the_servers_that_are_closed_are_those_that_clusters_close() -> None:
    assert CLOSED.items() <= ENVIRONMENT.items()


def test_ray_takes_it_does_not_open_it_and_asks_for_it_on_every_port(token: Path) -> None:
    """Ray itself: whether it looks where we wrote, before it writes one of its own, and what a stranger gets."""
    environment = {name: value for name, value in os.environ.items() if name not in CLOSED and "RAY_AUTH" not in name}
    done = subprocess.run(
        [sys.executable, "-c", START], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr[-2000:]
    first, _, ports = done.stdout.partition("\n")
    assert first.split() == ["heard", "token", "0o100600", "True"]
    found = json.loads(ports)
    assert len(found) >= 3, found
    assert {place.rpartition(":")[0] for place in found} == {"127.0.0.1"}
    assert set(found.values()) == {"refused"}, found


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leaves alone the Ray and the environment that other tests share."""
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "shutdown", lambda: None)
    monkeypatch.setattr(os, "environ", dict(os.environ))


def test_an_address_where_nothing_listens_is_told_at_once(alone: None) -> None:
    """Ray would wait for it, for minutes and deaf to signals."""
    address, begin = f"127.0.0.1:{free_port()}", time.monotonic()
    with pytest.raises(MachineryError, match=f"no Ray cluster could be joined at {address}: ConnectionRefused"):
        join(address)
    assert time.monotonic() - begin < 10


@pytest.mark.parametrize(
    "error",
    [
        Exception("The current node timed out during startup. This could happen because some of the raylet failed"),
        TimeoutError("Timed out while waiting for GCS"),
        ConnectionError("the address cannot be reached"),
        RaySystemError("the raylet was killed"),
        RpcError("UNAVAILABLE: failed to connect", 14),
        AssertionError(),
        KeyError("node:127.0.0.1"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_whatever_keeps_ray_from_starting_is_told_with_what_to_do(
    error: Exception, alone: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(ray, "init", fails)
    with socket.create_server(("127.0.0.1", 0)) as server:
        starts = [
            (None, r"Ray did not start on 127\.0\.0\.1: "),
            (f"127.0.0.1:{server.getsockname()[1]}", "no Ray cluster could be joined"),
        ]
        for address, said in starts:
            require_advice(address, said, error)


def require_advice(address: str | None, said: str, error: Exception) -> None:
    with pytest.raises(MachineryError, match=said) as caught, cluster(address):
        """It does not come so far."""
    assert type(error).__name__ in str(caught.value) and "give the same command again" in str(caught.value)
    assert caught.value.exit_code == 3


def test_a_command_whose_ray_is_too_slow_ends_with_that_message_alone(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails(*_: object, **__: object) -> None:
        raise Exception("The current node timed out during startup.")  # as Ray does

    def starts(*_: object) -> None:
        with cluster(None):
            """It does not come so far."""

    monkeypatch.setattr(ray, "init", fails)
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "shutdown", lambda: None)
    monkeypatch.setattr(preflight, "prepare", starts)
    assert main(["sft", "recipes/quickstart.yaml", "placement.start_method=spawn"]) == 3
    error = capsys.readouterr().err
    assert error.startswith("rlhf sft: Ray did not start on 127.0.0.1: Exception: The current node timed out")
    assert "Traceback" not in error and "unexpected error" not in error


@pytest.mark.parametrize("early", [True, False])
def test_a_command_that_is_stopped_before_its_run_begins_was_stopped_and_did_not_fail(early: bool, token: Path) -> None:
    program = EARLY.format(early=early)
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 75, done.stderr[-2000:]
    assert "stopped on request (SIGTERM)" in done.stderr and "Traceback" not in done.stderr


def test_a_stop_that_python_ignored_while_ray_started_is_heard_afterwards(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    heard = list[int]()
    before = signal.signal(signal.SIGTERM, lambda number, _: heard.append(number))

    def starts(*_: object, **__: object) -> None:
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(15))  # as Ray does
        os.register_at_fork(before=once)
        pid = os.fork()
        if pid == 0:
            os._exit(0)
        os.waitpid(pid, 0)
        assert not heard, "the exit was ignored"

    def once(sent: list[int] = []) -> None:  # noqa: B006  (registered for ever)
        if not sent:
            sent.append(os.getpid())
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0)  # the handler runs here

    monkeypatch.setattr(ray, "init", starts)
    try:
        join("10.0.0.1:6379")
        assert signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL
    finally:
        signal.signal(signal.SIGTERM, before)
    assert heard == [signal.SIGTERM]
    assert "ignored" not in capsys.readouterr().err


LIVES = """
import json, os, signal, subprocess, sys, tempfile, time
import launch.preflight
from launch.cli import main

def starts(*arguments):
    import ray
    from actors import cluster
    from actors.ray_watch import RayWatch, agents_of
    from rlhf.recovery.leftovers import prefix

    class Actor:
        def start(self, folder):
            child = subprocess.Popen(["sleep", "600"], process_group=0)
            open(os.path.join(folder, prefix("weights") + "a"), "w").close()
            return os.getpid(), child.pid

    watch = RayWatch()
    with cluster.cluster(None, watch=watch):
        actor = ray.remote(Actor).options(num_cpus=0).remote()
        worker, child = ray.get(actor.start.remote(tempfile.gettempdir()))
        own = {each.name: each.process for each in cluster._own_processes()}
        own |= {each.name: each.process for each in agents_of(own["raylet"])}
        print(json.dumps({**own, "worker": worker, "child": child}), flush=True)
        for _ in range(1200):
            watch.check()
            time.sleep(0.05)

signal.signal(signal.SIGHUP, signal.SIG_IGN)
launch.preflight.prepare = starts
sys.exit(main(["sft", "recipes/quickstart.yaml"]))
"""
"""A command whose Ray has one actor, which has a child and a file; it waits until Ray fails."""


@dataclass(frozen=True, kw_only=True)
class Command:
    """That command, and the processes that it has, by name."""

    process: subprocess.Popen[str]
    all: dict[str, int]
    folder: Path

    def left(self, seconds: float) -> list[str]:
        """What is left of it after at most so long: processes by name, and files."""
        until, left = time.monotonic() + seconds, ["all"]
        while left and time.monotonic() < until:
            time.sleep(0.05)
            left = [name for name, process in self.all.items() if is_alive(process)]
            left += [path.name for path in self.folder.glob("rlhf-weights-*")]
        return left


@pytest.fixture
def command(tmp_path: Path, token: Path) -> Iterator[Command]:
    """That command, in a process group of its own; its Ray runs."""
    environment = {**os.environ, "TMPDIR": str(tmp_path), "RAY_TMPDIR": "/tmp"}
    pipes: Any = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    process = subprocess.Popen([sys.executable, "-c", LIVES], cwd=ROOT, env=environment, process_group=0, **pipes)
    assert process.stdout is not None
    assert process.stdout.readline() == "reading the recipe and the data\n"
    found = Command(process=process, all=json.loads(process.stdout.readline()), folder=tmp_path)
    assert len(list(tmp_path.glob("rlhf-weights-*"))) == 1
    yield found
    process.kill()
    process.communicate(timeout=60)


def test_a_command_that_is_killed_leaves_nothing_of_ray(command: Command) -> None:
    """Before that, a signal to its process group, as from a terminal, does not reach Ray."""
    os.killpg(command.process.pid, signal.SIGHUP)
    os.kill(command.all["worker"], signal.SIGSTOP)
    time.sleep(0.5)
    assert {"raylet", "GCS", "worker", "child"} <= {name for name, process in command.all.items() if is_alive(process)}
    command.process.kill()
    assert command.left(20.0) == []


def test_auto_is_the_cluster_of_ray_start_and_no_local_ray_of_another_command(
    command: Command, alone: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = psutil.Process(command.all["raylet"]).cmdline()
    [local] = [word.removeprefix(own_ray.GCS_FLAG) for word in words if word.startswith(own_ray.GCS_FLAG)]
    assert local in services.find_gcs_addresses(), "Ray would join it"
    monkeypatch.setattr(services, "find_gcs_addresses", lambda: {local})
    monkeypatch.setattr(services, "find_bootstrap_address", lambda folder: "10.0.0.3:6379")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with pytest.raises(MachineryError, match="at auto: .*none runs on this machine, but for those of other commands"):
        join("auto")
    monkeypatch.setattr(services, "find_gcs_addresses", lambda: {"10.0.0.2:6379", local, "10.0.0.3:6379"})
    assert own_ray._running_cluster() == "10.0.0.3:6379", "that of the last `ray start`"
    monkeypatch.setattr(services, "find_bootstrap_address", lambda folder: None)
    assert own_ray._running_cluster() == "10.0.0.2:6379"
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.4:6379")
    assert own_ray._running_cluster() == "10.0.0.4:6379"


def test_a_cluster_that_listens_on_this_machine_only_is_no_local_ray(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``launch/head.sh`` gives its processes the variable by which Ray keeps to 127.0.0.1, as a local Ray does."""
    (tmp_path / "raylet").write_text("#!/bin/sh\nread line\n")
    (tmp_path / "raylet").chmod(0o755)
    environment = {name: value for name, value in os.environ.items() if name not in own_ray.MARK} | own_ray.OWN_RAY
    command = [tmp_path / "raylet", f"{own_ray.GCS_FLAG}127.0.0.1:1"]
    with subprocess.Popen(command, env=environment, stdin=subprocess.PIPE) as process:
        while psutil.Process(process.pid).name() != "raylet":
            time.sleep(0.01)
        monkeypatch.setattr(services, "find_gcs_addresses", lambda: {"127.0.0.1:1"})
        monkeypatch.setattr(services, "find_bootstrap_address", lambda folder: None)
        monkeypatch.delenv("RAY_ADDRESS", raising=False)
        assert own_ray._running_cluster() == "127.0.0.1:1"
        process.communicate(b"end\n", timeout=20)


SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in ("raylet", "dashboard agent")]


@pytest.mark.parametrize("victim", ["GCS", "runtime env agent", *SLOW])
def test_a_failure_of_ray_itself_ends_the_command_with_its_name(victim: str, command: Command) -> None:
    """``tests/end_to_end/test_ray_fails.py`` kills the raylet of a run."""
    begin = time.monotonic()
    os.kill(command.all[victim], signal.SIGKILL)
    _, said = command.process.communicate(timeout=60)
    assert command.process.returncode == 3 and time.monotonic() - begin < 15, said[-2000:]
    how = f"(process {command.all[victim]}) ended, killed by SIGKILL;"
    assert said.startswith(f"rlhf sft: Ray's {victim} {'ended, which the raylet needs;' if 'agent' in victim else how}")
    assert "Traceback" not in said and said.count("\n") == 1
    assert command.left(1.0) == []


def test_a_local_ray_has_no_process_that_no_run_needs(any_ray: None) -> None:
    children = [child for child in psutil.Process().children() if child.status() != psutil.STATUS_ZOMBIE]
    commands = [" ".join(child.cmdline()) for child in children]
    [raylet] = [command for command in commands if "/raylet/raylet " in command]
    assert f"{ROOT}/actors/setup_worker.py " in raylet, "which sets a worker's variables without importing Ray"
    assert raylet.count("/actors/keep_agent.sh ") == 2, "an agent that ends leaves the raylet its program"
    for program in ("monitor.py", "log_monitor.py", "dashboard.py"):
        assert not any(program in command.partition(" --")[0] for command in commands), program


LARGE = """
held = bytearray(64 * 2**20)
maps = open("/proc/self/smaps").read().split("VmFlags:")
kib = [int(sizes.split("Size:")[1].split()[0]) for sizes in maps[:-1]]
print([" hg " in flags for size, flags in zip(kib, maps[1:]) if size >= 64 * 2**10])
"""


@pytest.mark.skipif("GLIBC_TUNABLES" in os.environ, reason="this user tunes malloc")
def test_a_local_ray_keeps_snapshots_in_memory(any_ray: None) -> None:
    """Two of 25M trained parameters take 0.8 GB. What its store cannot hold, Ray writes to a disk."""
    assert ray.cluster_resources()["object_store_memory"] > 10**9


GIB = 2**30


@pytest.mark.parametrize(
    ("free", "limit", "expected"),
    [
        (100 * GIB, RLIM_INFINITY, 7 * GIB),  # Ray's default
        (2 * GIB, RLIM_INFINITY, 9 * GIB // 5),
        (100 * GIB, GIB, 9 * GIB // 10),
        (GIB // 16, RLIM_INFINITY, GIB // 2),  # a container's shared memory: Ray takes a disk
    ],
)
def test_a_local_store_takes_what_shared_memory_and_limits_allow(
    free: int, limit: int, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(own_ray, "resolve_object_store_memory", lambda available: 7 * GIB)
    monkeypatch.setattr(own_ray, "getrlimit", lambda kind: (limit, limit))
    monkeypatch.setattr(own_ray, "shared_memory", lambda: (free, free))
    assert own_ray._object_store() == expected


def test_large_memory_of_an_actor_lies_in_huge_pages() -> None:
    """As the kernel shows it: ``hg`` marks a mapping that asks for huge pages."""
    environment = worker_environment(threads=1, own_ray=True)
    done = subprocess.run(
        [sys.executable, "-c", LARGE], env=environment, capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.strip() == "[True]"


@pytest.mark.parametrize(("name", "value"), [("GLIBC_TUNABLES", "glibc.malloc.hugetlb=0"), ("GOMP_SPINCOUNT", "0")])
def test_a_users_own_tuning_stays(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    """It reaches the actors as it is."""
    monkeypatch.setenv(name, value)
    assert worker_environment(threads=1, own_ray=True)[name] == value


KILLED_AT_START = """
import os, signal, subprocess
import ray
from ray._private import services
from actors.cluster import cluster

def init(*_, **__):
    raylet = services.ConsolePopen(["sh", "-c", "sleep 600 & echo $!; wait"], stdout=subprocess.PIPE, text=True)
    print(raylet.pid, raylet.stdout.readline(), flush=True)
    os.kill(os.getpid(), signal.SIGKILL)

ray.init = init
with cluster(None):
    pass
"""


def test_a_command_that_is_killed_while_ray_starts_leaves_none_of_its_processes(tmp_path: Path) -> None:
    """Ray's agents are children of the raylet: Ray itself would end them a minute later."""
    environment = {**os.environ, "HOME": str(tmp_path)}
    command = [sys.executable, "-c", KILLED_AT_START]
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=100)
    raylet, agent = map(int, done.stdout.split())
    until = time.monotonic() + 10
    while (left := [each for each in (raylet, agent) if is_alive(each)]) and time.monotonic() < until:
        time.sleep(0.02)
    for each in left:
        os.kill(each, signal.SIGKILL)
    assert left == []


FAULTS = """
import resource, torch
def fill():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.empty(2**24).fill_(1)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
print(*(fill() for _ in range(30)))
"""
"""Page faults of tensors of 64 MiB, each of which is freed before the next. Pages have 4 KiB or 2 MiB."""


def test_actors_reuse_the_memory_of_large_tensors() -> None:
    environment = {**os.environ, "GLIBC_TUNABLES": MALLOC}
    done = subprocess.run(
        [sys.executable, "-c", FAULTS], env=environment, capture_output=True, text=True, timeout=120, check=True
    )
    assert median(map(int, done.stdout.split())) < 5
