"""Inspection and termination of processes: only of those that were recorded, by pid and start time."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from actors.inspection import inspect_here, terminate_here
from actors.process import ProcessLocation
from rlhf.process_identity import start_of
from rlhf.recovery.reaper import pid_namespace

Process = subprocess.Popen[bytes]


@pytest.fixture
def processes() -> Iterator[tuple[Process, Process]]:
    """An actor's process and its child."""
    both = (subprocess.Popen(["sleep", "60"]), subprocess.Popen(["sleep", "60"]))
    yield both
    for each in both:
        each.kill()
        each.wait(10)


def location(owner: Process, child: Process) -> ProcessLocation:
    where = ProcessLocation(
        name="policy rank 0", node="", node_id="", process=owner.pid, started=start_of(owner.pid), log="none"
    )
    return where.with_children([child.pid])


def is_running(process: Process) -> bool:
    time.sleep(0.2)
    return process.poll() is None


def test_a_recorded_process_and_its_children_are_killed(processes: tuple[Process, Process]) -> None:
    owner, child = processes
    terminate_here([location(owner, child)], spare_owner=False)
    assert not is_running(owner) and not is_running(child)


def test_the_owner_can_be_spared(processes: tuple[Process, Process]) -> None:
    owner, child = processes
    terminate_here([location(owner, child)], spare_owner=True)
    assert is_running(owner) and not is_running(child)


def test_processes_that_have_the_pids_by_now_are_left_alone(
    processes: tuple[Process, Process], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    owner, child = processes
    where = replace(location(owner, child), started=1, children_started=(1,))
    own_file = tmp_path / f"rlhf-weights-{pid_namespace()}-{owner.pid}-x"
    own_file.touch()
    monkeypatch.setattr("rlhf.recovery.leftovers.SHARED_MEMORY", tmp_path)
    terminate_here([where], spare_owner=False)
    assert is_running(owner) and is_running(child)
    assert own_file.exists(), "a file of the other process"
    facts, _ = inspect_here([where], dump=True)["policy rank 0"]
    assert not facts.alive and facts.rss_bytes is None and is_running(owner), "the dump's signal would end it"


def test_the_files_of_a_recorded_process_are_removed(
    processes: tuple[Process, Process], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    owner, child = processes
    file = tmp_path / f"rlhf-weights-{pid_namespace()}-{owner.pid}-x"
    file.touch()
    monkeypatch.setattr("rlhf.recovery.leftovers.SHARED_MEMORY", tmp_path)
    terminate_here([location(owner, child)], spare_owner=False)
    assert not file.exists()


def test_a_recorded_process_is_alive(processes: tuple[Process, Process]) -> None:
    facts, _ = inspect_here([location(*processes)], dump=False)["policy rank 0"]
    assert facts.alive and facts.rss_bytes and facts.children_alive


def test_a_cause_is_read_from_the_log_of_the_process_alone(processes: tuple[Process, Process], tmp_path: Path) -> None:
    failure = "Traceback (most recent call last):\n" + '  File "x.py", line 1, in f\n' * 100 + "MemoryError\n"
    (log := tmp_path / "log").write_text(failure)
    where = replace(location(*processes), log=str(log))
    assert "MemoryError" in inspect_here([where], dump=False)[where.name][1], "of a long traceback too"
    assert inspect_here([replace(where, log_begins=len(failure))], dump=False)[where.name][1] == ""
    log.write_text("MemoryError in sympy.parse\n")
    assert inspect_here([where], dump=False)[where.name][1] == "", "a user's function has printed it"
