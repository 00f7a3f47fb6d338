"""A signal reaches the process that was meant, and no other one that has its pid by now."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress

import pytest

from rlhf import process_identity
from rlhf.process_identity import kill_group, send_signal, start_of

Process = subprocess.Popen[bytes]


@pytest.fixture
def sleeper() -> Iterator[Process]:
    """A process that leads a group."""
    process = subprocess.Popen(["sleep", "60"], start_new_session=True)
    yield process
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait(10)


def test_the_start_of_a_process_does_not_change(sleeper: Process) -> None:
    started = start_of(sleeper.pid)
    assert started is not None and started == start_of(sleeper.pid)
    own = start_of(os.getpid())
    assert own is not None and own <= started


def test_a_name_with_brackets_and_spaces_is_read_past() -> None:
    code = "import ctypes, sys; ctypes.CDLL(None).prctl(15, b') R 1 (x'); sys.stdin.read()"
    process = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE)
    try:
        started = start_of(process.pid)
        time.sleep(0.5)
        assert started is not None and start_of(process.pid) == started
    finally:
        process.communicate(b"")


def test_a_dead_process_has_no_start(sleeper: Process) -> None:
    sleeper.kill()
    sleeper.wait(10)
    assert start_of(sleeper.pid) is None
    assert not send_signal(sleeper.pid, 1, signal.SIGKILL)


def test_the_process_that_was_meant_gets_the_signal(sleeper: Process) -> None:
    assert send_signal(sleeper.pid, start_of(sleeper.pid), signal.SIGTERM)
    assert sleeper.wait(10) == -signal.SIGTERM


@pytest.mark.parametrize("earlier", [True, False])
def test_another_process_with_that_pid_does_not(sleeper: Process, earlier: bool) -> None:
    started = start_of(sleeper.pid)
    assert started is not None
    assert not send_signal(sleeper.pid, started - 100 if earlier else None, signal.SIGKILL)
    time.sleep(0.1)
    assert sleeper.poll() is None


def test_a_group_is_killed_with_its_leader(sleeper: Process) -> None:
    kill_group(sleeper)
    assert sleeper.wait(10) == -signal.SIGKILL
    kill_group(sleeper)  # nothing is left


def test_what_a_dead_leader_left_behind_is_killed() -> None:
    leader = subprocess.Popen(
        ["bash", "-c", "sleep 60 & echo $!"], stdout=subprocess.PIPE, start_new_session=True, text=True
    )
    assert leader.stdout is not None
    member = int(leader.stdout.readline())
    leader.wait(10)
    assert start_of(member) is not None
    kill_group(leader)
    for _ in range(100):
        if start_of(member) is None or _state(member) == "Z":
            break
        time.sleep(0.05)
    else:
        pytest.fail("it lives")
    leader.stdout.close()


def test_a_group_whose_number_another_process_has_by_now_is_left_alone(
    sleeper: Process, monkeypatch: pytest.MonkeyPatch
) -> None:
    killed: list[int] = []
    monkeypatch.setattr(process_identity.os, "killpg", lambda group, number: killed.append(group))
    reaped = subprocess.Popen(["true"])
    reaped.wait(10)
    reaped.pid = sleeper.pid  # the kernel gave the number to the sleeper
    kill_group(reaped)
    assert killed == []


def _state(pid: int) -> str:
    with open(f"/proc/{pid}/stat", encoding="utf-8") as file:
        return file.read().rpartition(")")[2].split()[0]
