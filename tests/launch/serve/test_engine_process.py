"""A server that the gateway started never outlives it, nor do the processes that the server started."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from launch.serve.engine_process import EngineProcess
from rlhf.ports import free_port
from tests.launch.serve.live import ROOT, get, wait_for

SERVER = """
import subprocess, sys
child = subprocess.Popen(["sleep", "1000"])
print("child", child.pid, flush=True)
if "stubborn" in sys.argv:
    import signal
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
child.wait()
"""
OWNER = """
import sys, time
from pathlib import Path
from launch.serve.engine_process import EngineProcess
server = EngineProcess([sys.executable, "-c", sys.argv[1]], 1, Path(sys.argv[2]), 5.0, ())
print("started", flush=True)
time.sleep(1000)
"""


def child_of(log: Path) -> int:
    wait_for(lambda: log.exists() and "child " in log.read_text(), "the server starts")
    return int(log.read_text().split("child ")[1].split()[0])


def is_gone(pid: int) -> bool:
    return not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_nothing_of_a_server_is_left_when_the_gateway_is_killed(tmp_path: Path, number: int) -> None:
    log = tmp_path / "server.log"
    owner = subprocess.Popen([sys.executable, "-c", OWNER, SERVER, str(log)], cwd=ROOT, stderr=subprocess.DEVNULL)
    child = child_of(log)
    group = os.getpgid(child)
    os.kill(owner.pid, number)
    owner.wait()
    wait_for(lambda: is_gone(child), "the server's own process ends")
    wait_for(lambda: all(is_gone(each) for each in group_of(group)), "the group ends")


def group_of(group: int) -> list[int]:
    return [each.pid for each in psutil.process_iter() if _group(each.pid) == group]


def _group(pid: int) -> int:
    try:
        return os.getpgid(pid)
    except ProcessLookupError:
        return -1


def test_a_server_that_ignores_sigterm_is_killed_in_time(tmp_path: Path) -> None:
    log = tmp_path / "server.log"
    server = EngineProcess([sys.executable, "-c", SERVER, "stubborn"], 1, log, 0.5, ())
    child = child_of(log)
    begin = time.monotonic()
    asyncio.run(server.stop())
    assert time.monotonic() - begin < 5
    assert not server.is_running
    wait_for(lambda: is_gone(child), "the server's own process ends")


def test_a_server_that_ends_by_itself_is_seen(tmp_path: Path) -> None:
    server = EngineProcess([sys.executable, "-c", "raise SystemExit(3)"], 1, tmp_path / "server.log", 5.0, ())
    wait_for(lambda: not server.is_running, "the server ends")
    assert "ended with code 3" in server.log.read_text()


def test_a_server_sees_its_gpus_and_answers_until_it_is_stopped(tmp_path: Path) -> None:
    port = free_port()
    server = EngineProcess(
        [sys.executable, "-m", "benchmarks.stub_engine", "--port", str(port)], port, tmp_path / "a.log", 5.0, (2, 3)
    )
    wait_for(lambda: get(f"{server.url}/health") == 200, "the server answers")
    (listening,) = psutil.Process(server._process.pid).children()
    assert listening.environ()["CUDA_VISIBLE_DEVICES"] == "2,3"
    asyncio.run(server.stop())
    assert get(f"{server.url}/health") == 0
