"""Reading facts of real processes, and of nodes whose files are written here by hand."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from rlhf.recovery.diagnosis import Cause, diagnose
from rlhf.recovery.facts import host_memory, is_alive, oom_kills, process_state, read_facts

Child = subprocess.Popen[bytes]


@pytest.fixture
def child() -> Iterator[Child]:
    """A process that sleeps."""
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(300)"])
    yield process
    process.kill()  # also of one that is stopped
    process.wait(timeout=30)


def until_state(pid: int, state: str) -> None:
    """Wait until the kernel has carried the signal out."""
    end = time.monotonic() + 30
    while process_state(pid) != state:
        assert time.monotonic() < end, f"state {process_state(pid)}, not {state}"
        time.sleep(0.01)


def test_this_process_is_seen_as_it_is() -> None:
    facts = read_facts(os.getpid(), heartbeat_age_seconds=2.0, doing="tests", exit_text="none")
    assert facts.alive and facts.process_state in ("R", "S")
    assert (facts.heartbeat_age_seconds, facts.doing, facts.exit_text) == (2.0, "tests", "none")
    assert facts.rss_bytes is not None and facts.host_available_bytes is not None and facts.host_total_bytes is not None
    assert 2**20 < facts.rss_bytes < facts.host_total_bytes
    assert 0 < facts.host_available_bytes < facts.host_total_bytes
    assert facts.oom_kills_since_start is None and facts.children_alive is None


def test_a_stopped_process_is_alive_and_diagnosed_as_stopped(child: Child) -> None:
    child.send_signal(signal.SIGSTOP)
    until_state(child.pid, "T")
    facts = read_facts(child.pid, heartbeat_age_seconds=118.0)
    assert facts.alive
    assert diagnose(facts).cause is Cause.STOPPED


def test_a_killed_process_is_dead_even_before_its_parent_looks(child: Child) -> None:
    assert is_alive(child.pid)
    child.kill()
    until_state(child.pid, "Z")
    assert not read_facts(child.pid).alive  # still in the kernel's table
    child.wait(timeout=30)
    facts = read_facts(child.pid, oom_kills_before=oom_kills())
    assert (facts.alive, facts.process_state, facts.rss_bytes) == (False, None, None)
    assert diagnose(facts).cause is Cause.SILENT


def test_a_process_whose_child_is_gone_is_told_apart(child: Child) -> None:
    assert read_facts(os.getpid(), children=[child.pid]).children_alive is True
    child.kill()
    child.wait(timeout=30)
    assert read_facts(os.getpid(), children=[os.getpid(), child.pid]).children_alive is False


def test_this_host_counts_what_the_kernel_killed() -> None:
    kills = oom_kills()
    assert kills is not None
    assert read_facts(os.getpid(), oom_kills_before=kills - 2).oom_kills_since_start == 2


def test_a_process_that_is_not_there_is_unknown_never_an_error(tmp_path: Path, child: Child) -> None:
    child.kill()
    child.wait(timeout=30)
    facts = read_facts(child.pid, oom_kills_before=0, cgroup=tmp_path)
    assert (facts.alive, facts.process_state, facts.rss_bytes) == (False, None, None)
    assert oom_kills(tmp_path, tmp_path / "vmstat") is None


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> None:
    """A host with 1000 KiB, of which 400 are to be had."""
    memory = SimpleNamespace(total=1000 * 1024, available=400 * 1024)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: memory)


def container(folder: Path, limit: str) -> Path:
    """A container that uses 300 KiB, 100 of them cache that it would give back, and in which one was killed."""
    folder.mkdir()
    (folder / "memory.max").write_text(f"{limit}\n")
    (folder / "memory.current").write_text(f"{300 * 1024}\n")
    (folder / "memory.stat").write_text(f"anon {200 * 1024}\ninactive_file {100 * 1024}\n")
    (folder / "memory.events").write_text("low 0\nmax 12\noom 1\noom_kill 1\n")
    return folder


def test_a_container_counts_for_itself(tmp_path: Path) -> None:
    (tmp_path / "vmstat").write_text("nr_free_pages 25\noom_kill 5\n")
    assert oom_kills(tmp_path / "none", tmp_path / "vmstat") == 5
    assert oom_kills(container(tmp_path / "cgroup", "max"), tmp_path / "vmstat") == 1


@pytest.mark.usefixtures("host")
def test_memory_is_the_host_s_unless_the_container_s_limit_is_nearer(tmp_path: Path) -> None:
    kib = 1024
    assert host_memory(tmp_path / "none") == (1000 * kib, 400 * kib)
    assert host_memory(container(tmp_path / "unlimited", "max")) == (1000 * kib, 400 * kib)
    assert host_memory(container(tmp_path / "small", str(500 * kib))) == (500 * kib, 300 * kib)
    assert host_memory(container(tmp_path / "wide", str(900 * kib))) == (900 * kib, 400 * kib)
    assert host_memory(container(tmp_path / "full", str(150 * kib))) == (150 * kib, 0)
