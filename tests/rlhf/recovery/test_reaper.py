"""Tests that what a killed command leaves is ended and removed, and nothing else: real processes and files."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from rlhf.recovery import leftovers, reaper
from rlhf.recovery.facts import is_alive
from rlhf.recovery.reaper import end_sessions, members, remove_orphans

LEADER = """
import os, subprocess, sys
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], process_group=0)
print(child.pid, flush=True)
if len(sys.argv) > 1:
    os._exit(0)
child.wait()
"""
"""The first process of a session, with a child in a process group of its own."""

COMMAND = """
import subprocess, sys, tempfile, time
from pathlib import Path
from rlhf.recovery import leftovers
from rlhf.recovery.reaper import Reaper
folder = Path(sys.argv[1])
leftovers.SHARED_MEMORY, tempfile.tempdir = folder / "shared", str(folder / "temporary")
(folder / "shared" / (leftovers.prefix("weights") + "a")).touch()
program = [sys.executable, "-c", sys.argv[2]]
reaper = Reaper(leftovers.folders())
reaper.add_spilled(f"{folder}/session/spilled_*")
leader = subprocess.Popen(program, stdout=subprocess.PIPE, text=True, start_new_session=True)
reaper.add_session(leader.pid)
print(leader.pid, leader.stdout.readline().strip(), reaper._process.pid, flush=True)
time.sleep(600)
"""


def ended(process: int, seconds: float = 30.0) -> bool:
    """Whether a process ends within this time."""
    until = time.monotonic() + seconds
    while is_alive(process) and time.monotonic() < until:
        time.sleep(0.02)
    return not is_alive(process)


@pytest.fixture
def orphan() -> Iterator[tuple[int, int]]:
    """The id of a session whose leader has ended, and its only process, which is stopped."""
    leader = subprocess.Popen(
        [sys.executable, "-c", LEADER, "ends"], stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    assert leader.stdout is not None
    child = int(leader.stdout.readline())
    leader.wait(timeout=30)
    os.kill(child, signal.SIGSTOP)
    yield leader.pid, child
    if is_alive(child):
        os.kill(child, signal.SIGKILL)


def test_orphans_that_are_stopped_are_ended_with_their_session(orphan: tuple[int, int]) -> None:
    session, child = orphan
    other = subprocess.Popen(["sleep", "600"])
    assert list(members({session})) == [child]
    assert end_sessions([session])
    assert not is_alive(child) and list(members({session})) == []
    assert other.poll() is None, "of this test's own session"
    other.kill()
    other.wait()


def test_dead_processes_that_nobody_has_reaped_are_not_waited_for(tmp_path: Path) -> None:
    zombie = subprocess.Popen(["true"], start_new_session=True)
    while Path(f"/proc/{zombie.pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z":
        time.sleep(0.01)
    assert list(members({zombie.pid})) == []
    (tmp_path / f"rlhf-weights-{reaper.pid_namespace()}-{zombie.pid}-a").touch()
    remove_orphans([tmp_path])
    assert os.listdir(tmp_path) == []
    zombie.wait()


def test_only_own_files_of_dead_processes_of_this_namespace_are_orphans(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process of another container cannot be seen here, and may be alive."""
    dead = subprocess.Popen(["true"])
    dead.wait()
    space, alive = reaper.pid_namespace(), os.getpid()
    (tmp_path / f"rlhf-checkpoint-{space}-{dead.pid}-k3_x/files").mkdir(parents=True)
    (tmp_path / f"rlhf-weights-{space}-{dead.pid}-a").touch()
    kept = [
        f"rlhf-weights-{space + 1}-{dead.pid}-a",
        f"rlhf-weights-{space}-{alive}-a",
        f"rlhf-weights-{dead.pid}-a",
        f"other-weights-{space}-{dead.pid}-a",
        "rlhf-fork-0.lock",
    ]
    for name in kept:
        (tmp_path / name).touch()
    remove_orphans([tmp_path / "nowhere", tmp_path])
    assert sorted(os.listdir(tmp_path)) == sorted(kept)
    (tmp_path / f"rlhf-weights-{space}-{dead.pid}-a").touch()
    monkeypatch.setattr(os, "getuid", lambda: os.geteuid() + 1)
    remove_orphans([tmp_path])
    assert len(os.listdir(tmp_path)) == len(kept) + 1, "another user's"


def test_own_names_are_what_is_looked_for(tmp_path: Path) -> None:
    name = reaper.OWN_FILE.fullmatch(f"{leftovers.prefix('weights')}a_b1")
    assert name is not None
    assert (int(name["namespace"]), int(name["process"])) == (reaper.pid_namespace(), os.getpid())


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_after_a_command_was_killed_nothing_is_left(number: signal.Signals, tmp_path: Path) -> None:
    """Also if the signal goes to the reaper as well, as schedulers send SIGTERM to all processes of a job."""
    for name in ("shared", "temporary", "session/spilled_1"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "session/spilled_1/object").touch()
    (tmp_path / "session/logs").touch()
    command = subprocess.Popen(
        [sys.executable, "-c", COMMAND, str(tmp_path), LEADER], stdout=subprocess.PIPE, text=True, cwd=Path.cwd()
    )
    assert command.stdout is not None
    leader, child, own_reaper = map(int, command.stdout.readline().split())
    time.sleep(0.3)  # the reaper is about to wait
    assert is_alive(leader) and is_alive(child) and len(os.listdir(tmp_path / "shared")) == 1
    if number == signal.SIGTERM:
        os.kill(own_reaper, number)
    command.send_signal(number)
    command.wait(timeout=30)
    assert all(map(ended, (leader, child, own_reaper)))
    assert os.listdir(tmp_path / "shared") == []
    assert os.listdir(tmp_path / "session") == ["logs"]
