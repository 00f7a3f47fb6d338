"""Tests of the watch over Ray's own processes: real processes, ports and logs. ``test_ray_fails.py`` kills Ray's."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from actors import ray_watch
from actors.lean_node import KEEP
from actors.ray_watch import RayProcess, RayWatch, describe_end
from rlhf.errors import ClusterError
from rlhf.recovery.facts import is_alive
from rlhf.recovery.last_resort import LastResort

Sleeper = subprocess.Popen[bytes]


@pytest.fixture
def sleepers() -> Iterator[tuple[Sleeper, Sleeper]]:
    """Two processes that do nothing."""
    both = subprocess.Popen(["sleep", "600"]), subprocess.Popen(["sleep", "600"])
    yield both
    for each in both:
        each.kill()
        each.wait()


def named(name: str, process: Sleeper) -> RayProcess:
    return RayProcess(name=name, process=process.pid, code=process.poll)


def failure(watch: RayWatch, seconds: float = 30.0) -> str:
    """The message with which it fails within this time; empty if it does not."""
    until = time.monotonic() + seconds
    while watch.failure is None and time.monotonic() < until:
        time.sleep(0.01)
    return str(watch.failure or "")


def test_who_ended_and_how_is_told_to_every_wait(sleepers: tuple[Sleeper, Sleeper], tmp_path: Path) -> None:
    gcs, raylet = sleepers
    codes = list[int]()
    watch = RayWatch(LastResort(codes.append))
    with watch.watching([named("GCS", gcs), named("raylet", raylet)], tmp_path):
        watch.check()
        raylet.kill()
        told = failure(watch)
        with pytest.raises(ClusterError) as caught:
            watch.check()
    assert str(caught.value) == told
    assert told.startswith(f"Ray's raylet (process {raylet.pid}) ended, killed by SIGKILL; likely cause: it was killed")
    assert told.endswith("Without it no actor can be reached.")
    assert codes == [], "the main thread has its time"


def test_without_an_end_there_is_no_failure(sleepers: tuple[Sleeper, Sleeper], tmp_path: Path) -> None:
    """An end after the context is Ray's own, which ends with its command."""
    watch = RayWatch(LastResort(list[int]().append))
    with watch.watching([named("raylet", sleepers[0])], tmp_path):
        assert not failure(watch, 0.2)
    sleepers[0].kill()
    assert not failure(watch, 0.2)
    watch.check()


def test_a_main_thread_that_is_stuck_is_ended(
    sleepers: tuple[Sleeper, Sleeper], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray_watch, "END_SECONDS", 0.1)
    codes = list[int]()
    with RayWatch(LastResort(codes.append)).watching([named("GCS", sleepers[0])], tmp_path):
        sleepers[0].kill()
        until = time.monotonic() + 30
        while not codes and time.monotonic() < until:
            time.sleep(0.01)
    assert codes == [3]


def test_a_process_that_stays_stopped_has_failed(
    sleepers: tuple[Sleeper, Sleeper], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray's calls would wait for it for ever."""
    monkeypatch.setattr(ray_watch, "POLL_SECONDS", 0.05)
    monkeypatch.setattr(ray_watch, "STOPPED_SECONDS", 0.5)
    watch = RayWatch(LastResort(list[int]().append))
    with watch.watching([named("GCS", sleepers[0]), named("raylet", sleepers[1])], tmp_path):
        sleepers[0].send_signal(signal.SIGSTOP)
        assert not failure(watch, 0.2)
        sleepers[0].send_signal(signal.SIGCONT)
        assert not failure(watch, 0.8), "it goes on"
        sleepers[1].send_signal(signal.SIGSTOP)
        told = failure(watch)
    assert told.startswith(f"Ray's raylet (process {sleepers[1].pid}) has been stopped for 0 s; likely cause: SIGSTOP")


def test_a_session_folder_that_is_removed_is_named(
    sleepers: tuple[Sleeper, Sleeper], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Calls that need a new process would wait for it for ever."""
    monkeypatch.setattr(ray_watch, "POLL_SECONDS", 0.05)
    raylet = tmp_path / "sockets" / "raylet"
    raylet.parent.mkdir()
    raylet.touch()
    watch = RayWatch(LastResort(list[int]().append))
    with watch.watching([named("raylet", sleepers[1])], tmp_path, paths=[tmp_path, raylet, tmp_path / "other"]):
        assert not failure(watch, 0.3)
        shutil.rmtree(raylet.parent)
        told = failure(watch)
    assert told.startswith(f"{raylet} of Ray's session was removed, which") and "RAY_TMPDIR" in told


def test_a_raylet_that_removes_its_socket_before_it_ends_has_ended(
    sleepers: tuple[Sleeper, Sleeper], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray_watch, "POLL_SECONDS", 0.5)
    (tmp_path / "raylet").touch()
    watch = RayWatch(LastResort(list[int]().append))
    with watch.watching([named("raylet", sleepers[1])], tmp_path, paths=[tmp_path / "raylet"]):
        (tmp_path / "raylet").unlink()
        sleepers[1].kill()
        assert failure(watch).startswith("Ray's raylet (process")


def test_an_agent_that_took_the_raylet_with_it_is_named(tmp_path: Path) -> None:
    """As the raylet's log tells."""
    (tmp_path / "raylet.out").write_text(
        "x" * ray_watch.LOG_BYTES + "\n[2026] (raylet) The raylet exited immediately because one Ray agent failed, "
        "agent_name = runtime_env_agent.\n"
    )
    told = describe_end([RayProcess(name="raylet", process=7, code=lambda: 1)], tmp_path, None)
    assert told == (
        "Ray's runtime env agent ended, which the raylet needs; what to do: see the runtime env agent's log in "
        f"{tmp_path}"
    )


def test_an_agent_that_ended_before_the_raylet_is_named_with_its_cause(tmp_path: Path) -> None:
    told = describe_end([RayProcess(name="dashboard agent", process=7)], tmp_path, None)
    assert told.startswith("Ray's dashboard agent ended, which the raylet needs; what to do: see the dashboard agent's")


def test_agents_are_found_before_and_after_they_change_their_command_line(tmp_path: Path) -> None:
    """Below the raylet, among workers and the programs that run agents."""
    lines = [
        "/bin/python3 -u /ray/dashboard/agent.py --a",
        "ray::RuntimeEnvAgent",
        "sh keep python /dashboard/agent.py",
    ]
    program = f'for line in {" ".join(map(repr, lines))}; do bash -c \'exec -a "$0" sleep 60\' "$line" & done; wait'
    with subprocess.Popen(["bash", "-c", f"({program}) & wait"], start_new_session=True) as raylet:
        until = time.monotonic() + 10
        while len(found := ray_watch.agents_of(raylet.pid)) < 2 and time.monotonic() < until:
            time.sleep(0.01)
        os.killpg(raylet.pid, signal.SIGKILL)
    assert sorted(each.name for each in found) == ["dashboard agent", "runtime env agent"]
    assert ray_watch.agents_of(raylet.pid) == []


def test_an_agent_ends_before_the_program_that_runs_it_which_ends_with_the_raylet() -> None:
    """As does the agent, if the raylet is killed; it reads a pipe of the raylet."""
    command = f"{' '.join(KEEP)} sh -c 'echo $PPID $RAY_RAYLET_PID $$; exec cat' <&0 & wait"
    agents, parents = list[int](), list[int]()
    for has_agent in (True, False):
        with subprocess.Popen(
            ["bash", "-c", command], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        ) as raylet:
            assert raylet.stdout is not None
            parent, known, agent = map(int, raylet.stdout.readline().split())
            assert parent == known, "the agent looks for its parent by this"
            time.sleep(0.2)
            assert is_alive(agent)
            if not has_agent:
                os.kill(agent, signal.SIGKILL)
                time.sleep(0.2)
                assert is_alive(parent)
            raylet.kill()
            agents.append(agent)
            parents.append(parent)
    until = time.monotonic() + 10
    while any(map(is_alive, (*agents, *parents))) and time.monotonic() < until:
        time.sleep(0.05)
    assert not any(map(is_alive, (*agents, *parents)))


@pytest.mark.parametrize(
    ("code", "how"),
    [
        (-signal.SIGBUS, "(SIGBUS): /dev/shm is full, or was; what to do: "),
        (-signal.SIGBUS, " GiB of /dev/shm are free now: remove"),
        (-signal.SIGSEGV, "ended, killed by SIGSEGV; likely cause: it crashed in native code"),
        (-signal.SIGRTMIN - 1, "ended, killed by signal"),
        (1, "ended, exit code 1; likely cause: not known; what to do: see the logs of Ray in"),
        (None, "ended; likely cause: it ended without a message"),
    ],
)
def test_the_likely_cause_is_that_of_the_exit_code(code: int | None, how: str, tmp_path: Path) -> None:
    assert how in describe_end([RayProcess(name="raylet", process=7, code=lambda: code)], tmp_path, None)


def test_the_kernels_kills_for_memory_are_the_cause(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_watch, "oom_kills_since", lambda before: 2 - (before or 0))
    told = describe_end([RayProcess(name="raylet", process=7, code=lambda: -9)], tmp_path, 1)
    assert "likely cause: the host ran out of memory" in told


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """A GCS that may be silent for 0.75 s."""
    monkeypatch.setattr(ray_watch, "POLL_SECONDS", 0.1)
    monkeypatch.setenv(ray_watch.GCS_SECONDS, "1")


SERVER = """
import sys
from concurrent.futures import ThreadPoolExecutor
import grpc
server = grpc.server(ThreadPoolExecutor(1))
print(server.add_insecure_port(sys.argv[1]), flush=True)
server.start()
server.wait_for_termination()
"""
"""A gRPC server at an address, in a process of its own; it prints its port."""


@contextmanager
def grpc_server(port: int = 0) -> Iterator[tuple[Sleeper, ray_watch.Address]]:
    """A process that serves gRPC, and its address."""
    process = subprocess.Popen([sys.executable, "-c", SERVER, f"127.0.0.1:{port}"], stdout=subprocess.PIPE)
    assert process.stdout is not None
    try:
        yield process, ("127.0.0.1", int(process.stdout.readline()))
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


@pytest.mark.parametrize("kind", [signal.SIGKILL, signal.SIGSTOP])
def test_a_gcs_of_another_host_that_is_gone_or_stopped_has_failed(kind: int, quick: None, tmp_path: Path) -> None:
    """Not at once: one with external storage may be restarted."""
    watch = RayWatch(LastResort(list[int]().append))
    with grpc_server() as (process, address), watch.watching([], tmp_path, address):
        assert not failure(watch, 1.5)
        process.send_signal(kind)
        begin = time.monotonic()
        told = failure(watch)
    assert time.monotonic() - begin > 0.6
    assert told.startswith(f"Ray's GCS at 127.0.0.1:{address[1]} has not answered for 1 s")
    assert f"ray status --address 127.0.0.1:{address[1]}" in told


def test_a_gcs_that_pauses_for_less_has_not_failed(quick: None, tmp_path: Path) -> None:
    watch = RayWatch(LastResort(list[int]().append))
    with grpc_server() as (process, address), watch.watching([], tmp_path, address):
        for _ in range(3):
            process.send_signal(signal.SIGSTOP)
            time.sleep(0.4)
            process.send_signal(signal.SIGCONT)
            assert not failure(watch, 0.4)


@pytest.mark.parametrize("is_reset", [True, False])
@pytest.mark.parametrize("has_tls", [True, False])
def test_a_server_that_expects_tls_answers_by_closing_the_connection(
    has_tls: bool, is_reset: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without TLS that is what a tunnel does whose other end is gone."""
    monkeypatch.setenv("RAY_USE_TLS", str(int(has_tls)))
    with socket.create_server(("127.0.0.1", 0)) as server:
        thread = threading.Thread(target=_close_one, args=(server, is_reset))
        thread.start()
        assert ray_watch.answers(server.getsockname()) == has_tls
        thread.join()


def _close_one(server: socket.socket, is_reset: bool) -> None:
    """Accept a connection, and close or reset it: what was received is not read, and lingering is off."""
    connection, _ = server.accept()
    if is_reset:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    else:
        connection.recv(1024)
    connection.close()


def test_descriptors_are_closed(sleepers: tuple[Sleeper, Sleeper], tmp_path: Path) -> None:
    count: Callable[[], int] = lambda: len(os.listdir("/proc/self/fd"))  # noqa: E731
    before = count()
    for _ in range(3):
        with RayWatch(LastResort(list[int]().append)).watching(
            [named("GCS", sleepers[0]), named("raylet", sleepers[1])], tmp_path
        ):
            assert count() > before
    assert count() == before
