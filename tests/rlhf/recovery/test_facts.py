"""Reading facts of real processes, and of nodes whose files are written here by hand."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from rlhf.recovery.diagnosis import Cause, diagnose
from rlhf.recovery.facts import host_memory, is_alive, oom_kills, process_state, read_facts, rss_bytes

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


def test_missing_files_are_unknown_never_an_error(tmp_path: Path) -> None:
    facts = read_facts(os.getpid(), oom_kills_before=0, proc=tmp_path, cgroup=tmp_path)
    assert facts.alive  # the kernel says so without any file
    unknown = (facts.process_state, facts.rss_bytes, facts.host_total_bytes, facts.host_available_bytes)
    assert unknown == (None, None, None, None) and facts.oom_kills_since_start is None


def test_the_name_of_a_process_may_look_like_anything(tmp_path: Path) -> None:
    (tmp_path / "7").mkdir()
    (tmp_path / "7" / "stat").write_text("7 (ray::a) Z (b) D 1 7 7 0 -1 4194304\n")
    (tmp_path / "7" / "statm").write_text("9000 250 100 1 0 200 0\n")
    assert process_state(7, tmp_path) == "D"
    assert rss_bytes(7, tmp_path) == 250 * os.sysconf("SC_PAGE_SIZE")


def host(folder: Path) -> Path:
    """A host with 1000 KiB, of which 400 are to be had, that has killed 5 processes."""
    folder.mkdir()
    (folder / "meminfo").write_text(
        "MemTotal:    1000 kB\nMemFree:     100 kB\nMemAvailable:    400 kB\nHugePages_Total: 0\n"
    )
    (folder / "vmstat").write_text("nr_free_pages 25\noom_kill 5\n")
    return folder


def container(folder: Path, limit: str) -> Path:
    """A container that uses 300 KiB, 100 of them cache that it would give back, and in which one was killed."""
    folder.mkdir()
    (folder / "memory.max").write_text(f"{limit}\n")
    (folder / "memory.current").write_text(f"{300 * 1024}\n")
    (folder / "memory.stat").write_text(f"anon {200 * 1024}\ninactive_file {100 * 1024}\n")
    (folder / "memory.events").write_text("low 0\nmax 12\noom 1\noom_kill 1\n")
    return folder


def test_a_container_counts_for_itself(tmp_path: Path) -> None:
    proc = host(tmp_path / "proc")
    assert oom_kills(proc, tmp_path / "none") == 5
    assert oom_kills(proc, container(tmp_path / "cgroup", "max")) == 1


def test_memory_is_the_host_s_unless_the_container_s_limit_is_nearer(tmp_path: Path) -> None:
    proc = host(tmp_path / "proc")
    kib = 1024
    assert host_memory(proc, tmp_path / "none") == (1000 * kib, 400 * kib)
    assert host_memory(proc, container(tmp_path / "unlimited", "max")) == (1000 * kib, 400 * kib)
    assert host_memory(proc, container(tmp_path / "small", str(500 * kib))) == (500 * kib, 300 * kib)
    assert host_memory(proc, container(tmp_path / "wide", str(900 * kib))) == (900 * kib, 400 * kib)
    assert host_memory(proc, container(tmp_path / "full", str(150 * kib))) == (150 * kib, 0)
