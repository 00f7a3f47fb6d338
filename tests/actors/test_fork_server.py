"""The fork server: its processes are as Ray's own would be, and nothing of it remains."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from actors import fork_client, fork_server
from actors.fork_client import RAYLET, SERVER, WAITING, address_of, start_server
from rlhf.recovery.facts import is_alive

PROGRAM = """
import json, os, random, signal, sys, time
import numpy
facts = {
    "process": os.getpid(), "parent": os.getppid(), "group": os.getpgid(0), "arguments": sys.argv[1:],
    "had": "slow_import" in sys.modules, "folder": os.getcwd(), "given": os.environ.get("GIVEN"),
    "environment": sorted(os.environ), "name": __name__, "path": sys.path[0],
    "blocked": [int(each) for each in signal.pthread_sigmask(signal.SIG_BLOCK, [])],
    "drawn": [random.random(), float(numpy.random.rand())],
}
print(json.dumps(facts), flush=True)
if "wait" in sys.argv:
    time.sleep(300)
sys.exit(7)
"""
"""A worker's program in these tests."""

COMMAND = """
import os, socket, sys, time
from actors.fork_client import start_server
listener = socket.create_server("\\0" + sys.argv[1], family=socket.AF_UNIX)
print(start_server(listener, os.environ, sys.argv[2:]).pid, flush=True)
time.sleep(60)
"""
"""A command that has a server import."""


class Node:
    """A node with a raylet of its own, and a client for it."""

    def __init__(self, folder: Path, raylet: subprocess.Popen[bytes]) -> None:
        self.folder, self.raylet = folder, raylet
        (folder / "program.py").write_text(PROGRAM)
        (folder / "slow_import.py").write_text("VALUE = 1\n")
        (folder / "threaded.py").write_text(
            "import threading\nthreading.Thread(target=threading.Event().wait, daemon=True).start()\n"
        )

    @property
    def environment(self) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if name not in (RAYLET, SERVER)}
        search = os.pathsep.join([str(Path.cwd()), str(self.folder)])
        return {**kept, "PYTHONPATH": search, "OMP_NUM_THREADS": "1"}

    def start(self, modules: str, *arguments: str, **variables: str) -> subprocess.Popen[str]:
        """A client that asks for the program."""
        return subprocess.Popen(
            [sys.executable, "-I", "-S", fork_client.__file__, modules, str(self.folder / "program.py"), *arguments],
            env={**self.environment, RAYLET: str(self.raylet.pid), **variables},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=self.folder,
        )

    def begin(self, name: str, *modules: str) -> subprocess.Popen[bytes]:
        """A server of a command, which is this process."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
            listener.bind(f"\0{name}")
            listener.listen(WAITING)
            return start_server(listener, self.environment, modules)


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    """A node whose raylet is a process that sleeps; at the end no server is left."""
    with subprocess.Popen(["sleep", "600"]) as raylet:
        yield Node(tmp_path, raylet)
        raylet.kill()
    end = time.monotonic() + 10
    while (left := servers(raylet.pid)) and time.monotonic() < end:
        time.sleep(0.02)
    assert not left, "the server ends with its raylet"


def servers(raylet: int) -> list[psutil.Process]:
    """Running fork servers of a raylet: their processes have the same command line, which Ray replaces later."""
    found = dict[int, int]()
    processes = dict[int, psutil.Process]()
    for process in psutil.process_iter():
        try:  # any of these may end meanwhile
            is_server = "actors.fork_server" in process.cmdline() and process.environ().get(RAYLET) == str(raylet)
            if is_server and process.status() != psutil.STATUS_ZOMBIE:
                found[process.pid], processes[process.pid] = process.ppid(), process
        except psutil.Error:
            continue
    return [processes[pid] for pid, parent in found.items() if parent not in found]


def facts_of(client: subprocess.Popen[str]) -> dict[str, Any]:
    assert client.stdout is not None
    line = client.stdout.readline()
    assert line, client.communicate(timeout=60)
    return dict(json.loads(line))


def test_a_process_is_as_its_client_would_have_been(node: Node) -> None:
    client = node.start("slow_import", "one", "two words", GIVEN="x", RAY_OTHER="y")
    facts = facts_of(client)
    assert client.wait(timeout=60) == 7, "the exit code is passed on"
    assert facts["had"], "the module was imported before"
    assert facts["arguments"] == ["one", "two words"] and facts["name"] == "__main__"
    assert facts["folder"] == str(node.folder) == facts["path"]
    assert facts["given"] == "x" and "RAY_OTHER" in facts["environment"]
    assert "OPENBLAS_NUM_THREADS" not in facts["environment"] or "OPENBLAS_NUM_THREADS" in os.environ
    assert facts["group"] == facts["process"], "Ray kills the group of a worker that ended"
    assert facts["blocked"] == []
    assert facts["process"] != client.pid


def test_processes_of_one_environment_share_a_server(node: Node) -> None:
    clients = [node.start("numpy.random", RAY_JOB_ID=str(number)) for number in range(4)]
    facts = [facts_of(client) for client in clients]
    assert len({each["parent"] for each in facts}) == 1 == len(servers(node.raylet.pid))
    for drawn in zip(*(each["drawn"] for each in facts), strict=True):
        assert len(set(drawn)) == 4, "no two draw the same random numbers"
    other = facts_of(node.start("slow_import", OMP_NUM_THREADS="2"))
    assert other["parent"] not in {each["parent"] for each in facts}, "read at import: another server"


def test_the_address_depends_on_what_is_read_at_import() -> None:
    base = {"OMP_NUM_THREADS": "1", RAYLET: "5", "RAY_JOB_ID": "1", "SHLVL": "1"}
    assert address_of(base) == address_of({**base, "RAY_JOB_ID": "2", "SHLVL": "2"})
    for name, value in {"OMP_NUM_THREADS": "2", RAYLET: "6", "NEW": ""}.items():
        assert address_of(base) != address_of({**base, name: value}), name


def test_a_killed_client_takes_its_process_with_it(node: Node) -> None:
    clients = [node.start("slow_import", "wait") for _ in range(2)]
    processes = [psutil.Process(int(str(facts_of(client)["process"]))) for client in clients]
    clients[0].kill()
    processes[0].wait(timeout=10)
    assert processes[1].is_running(), "the other goes on"
    os.kill(processes[1].pid, signal.SIGKILL)
    assert clients[1].wait(timeout=10) == signal.SIGKILL, "a client ends with its process"
    assert not processes[1].is_running(), "reaped: Ray would wait for a zombie"
    assert facts_of(node.start("slow_import"))["had"], "the server goes on"


def test_a_server_with_threads_is_not_forked(node: Node) -> None:
    client = node.start("threaded")
    facts = facts_of(client)
    assert facts["process"] == client.pid, "the client became the process"
    assert client.wait(timeout=60) == 7
    assert client.stderr is not None
    assert "2 threads" in client.stderr.read()


def test_a_server_that_does_not_answer_is_done_without(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is stopped, for example."""
    monkeypatch.setattr(fork_client, "ANSWER_SECONDS", 0.1)
    ours, theirs = socket.socketpair()
    with ours, theirs, pytest.raises(OSError, match="timed out"):
        fork_client.ask(ours, ["slow_import"], ["program.py"], os.environ)


def test_a_module_that_cannot_be_imported_is_the_processs_own_matter(node: Node) -> None:
    client = node.start("no_such_module,slow_import")
    assert client.wait(timeout=60) == 7
    assert facts_of(client)["process"] != client.pid


def test_a_client_that_goes_or_sends_no_more_is_not_awaited_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fork_server, "READ_SECONDS", 0.05)
    ours, theirs = socket.socketpair()
    with ours, theirs:
        with pytest.raises(OSError, match="timed out"):
            fork_server.read_request(ours)
        socket.send_fds(theirs, [fork_client.LENGTH.pack(100)], [0, 1, 2])
        with pytest.raises(OSError, match="timed out"):
            fork_server.read_request(ours)
    for sent in (b"", b"\0", fork_client.LENGTH.pack(100) + b"{"):
        ours, theirs = socket.socketpair()
        theirs.sendall(sent)
        theirs.close()
        with ours, pytest.raises(ConnectionError):
            fork_server.read_request(ours)


def test_the_server_of_a_command_imports_ahead_and_ends_with_the_first_raylet(node: Node, tmp_path: Path) -> None:
    mark = tmp_path / "imported"
    (tmp_path / "marking.py").write_text(f"open({str(mark)!r}, 'w').close()\n")
    name = f"rlhf-fork-test-{os.getpid()}-ahead"
    server = node.begin(name, "no_such_module", "marking")
    wait_until(mark.exists)
    facts = facts_of(node.start("slow_import", "wait", **{SERVER: name}))
    assert facts["parent"] == server.pid and facts["had"]
    node.raylet.kill()
    assert server.wait(timeout=10) == 0
    wait_until(lambda: not is_alive(facts["process"]))  # which does not notice by itself


def test_the_server_of_a_command_ends_on_request_with_its_processes(node: Node) -> None:
    name = f"rlhf-fork-test-{os.getpid()}-asked"
    server = node.begin(name)
    facts = facts_of(node.start("slow_import", "wait", **{SERVER: name}))
    server.terminate()
    assert server.wait(timeout=10) == 0
    wait_until(lambda: not is_alive(facts["process"]))
    assert facts_of(node.start("slow_import", **{SERVER: name}))["had"], "the node's own server does it then"


def test_the_server_of_a_command_that_is_killed_ends_in_the_middle_of_an_import(node: Node, tmp_path: Path) -> None:
    mark = tmp_path / "begun"
    (tmp_path / "endless.py").write_text(f"import time\nopen({str(mark)!r}, 'w').close()\ntime.sleep(60)\n")
    with subprocess.Popen(
        [sys.executable, "-c", COMMAND, f"rlhf-fork-test-{os.getpid()}-killed", "endless"],
        env=node.environment,
        stdout=subprocess.PIPE,
    ) as command:
        assert command.stdout is not None
        server = int(command.stdout.readline())
        wait_until(mark.exists)
        command.kill()
    wait_until(lambda: not is_alive(server))


def test_a_process_of_a_server_is_ended_by_a_signal_as_any_other(node: Node) -> None:
    client = node.start("slow_import", "wait")
    os.kill(facts_of(client)["process"], signal.SIGTERM)
    assert client.wait(timeout=10) == signal.SIGTERM


@pytest.mark.skipif(os.getuid() != 0, reason="needs processes of two users")
def test_other_users_get_no_process_and_lend_none(node: Node) -> None:
    name = f"rlhf-fork-test-{os.getpid()}-users"
    server, heard = node.begin(name), socket.socketpair()

    def be_somebody_else() -> None:
        os.setuid(65534)
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(f"\0{name}")
            try:
                fork_client.ask(connection, ["slow_import"], [str(node.folder / "program.py")], node.environment)
                heard[1].sendall(b"F")
            except OSError:
                heard[1].sendall(b"-")
        squatter = socket.create_server(f"\0{name}-2", family=socket.AF_UNIX)
        heard[1].sendall(b"+")
        heard[1].sendall(squatter.accept()[0].recv(1) or b"-")

    other = multiprocessing.get_context("fork").Process(target=be_somebody_else, daemon=True)
    other.start()
    assert heard[0].recv(1) == b"-", "it got no process"
    assert facts_of(node.start("slow_import", **{SERVER: name}))["parent"] == server.pid, "it goes on"
    assert heard[0].recv(1) == b"+"
    client = node.start("slow_import", **{SERVER: f"{name}-2"})
    assert facts_of(client)["process"] == client.pid, "the client became the process"
    assert heard[0].recv(1) == b"-", "it was told nothing"
    other.join(timeout=10)
    server.terminate()
    server.wait(timeout=10)


def wait_until(holds: Callable[[], bool]) -> None:
    end = time.monotonic() + 10
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.02)
