"""Locks on shared storage: machines that crash, that live, that were suspended, and file servers that keep a dead lock.

Other machines are processes here with another identifier; the locks and the clock of files are real.
"""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from rlhf.storage.folder_lock import FolderLock, LockedError, Timing, machine_id
from rlhf.storage.lock_record import LockRecord, parse_record

FAST = Timing(beat=0.1, stale=1.0, poll=0.05)
ELSEWHERE = "other/boot-1"
HOLD = """
import sys, time
from pathlib import Path
from rlhf.storage.folder_lock import FolderLock, Timing
lock = FolderLock.take(Path(sys.argv[1]), machine=sys.argv[2], timing=Timing(beat=0.1, stale=1.0, poll=0.05))
print("held", flush=True)
sys.stdin.read()
"""

Start = Callable[[str], subprocess.Popen[str]]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / ".ppo.lock"


@pytest.fixture
def start(path: Path) -> Iterator[Start]:
    """Starts a process that holds the lock, on a machine of the given identifier."""
    started: list[subprocess.Popen[str]] = []

    def run(machine: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", HOLD, str(path), machine]
        pipe = subprocess.PIPE
        started.append(subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True))
        assert started[-1].stdout is not None
        assert started[-1].stdout.readline() == "held\n"
        return started[-1]

    yield run
    for process in started:
        process.kill()
        process.communicate(timeout=30)


def end(process: subprocess.Popen[str]) -> None:
    """End it as a crash does."""
    process.kill()
    process.wait(timeout=30)


def take(path: Path, notices: list[str] | None = None, machine: str | None = None) -> FolderLock:
    notice = (notices if notices is not None else []).append
    return FolderLock.take(path, notice, machine=machine, on_loss=lambda text: None, timing=FAST)


def test_on_one_machine_death_frees_it_at_once_and_without_a_word(path: Path, start: Start) -> None:
    holder, notices = start(machine_id()), list[str]()
    with pytest.raises(LockedError, match=f"process {holder.pid} on "):
        take(path, notices)
    end(holder)
    began = time.monotonic()
    take(path, notices).release()
    assert time.monotonic() - began < FAST.stale and notices == []


def test_a_live_process_of_another_machine_is_never_robbed(path: Path, start: Start) -> None:
    """Also where its lock does not reach this machine: this process's lock succeeds there."""
    holder = start(ELSEWHERE)
    for without_locks in (False, True):
        if without_locks:
            path.write_text(path.read_text())  # a new start with the same record
            copy = path.with_name("copy")
            copy.write_text(path.read_text())
            copy.replace(path)  # nobody has locked this file, as a local lock on another machine looks from here
        with pytest.raises(LockedError, match=f"process {holder.pid} on other, which is alive"):
            take(path)


def test_a_crashed_machine_is_recognised_by_its_silence_and_the_takeover_is_reported(path: Path, start: Start) -> None:
    holder, notices = start(ELSEWHERE), list[str]()
    end(holder)
    began = time.monotonic()
    lock = take(path, notices)
    assert time.monotonic() - began >= FAST.stale - 2 * FAST.beat - FAST.poll
    assert f"process {holder.pid} on other held it 0 s ago; waiting up to 1 s" in notices[0]
    assert f"taken over from process {holder.pid} on other" in notices[1] and "no heartbeat for 1 s" in notices[1]
    record = parse_record(path.read_text())
    assert record is not None and record.process == os.getpid()
    lock.release()
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_a_dead_lock_that_the_server_keeps_is_replaced(path: Path, start: Start) -> None:
    holder = start(ELSEWHERE)
    with path.open("r+") as kept:  # the crashed machine's lock, which the server still has
        end(holder)
        fcntl.flock(kept, fcntl.LOCK_EX)
        lock = take(path, notices := list[str]())
        assert "taken over" in notices[-1]
    with pytest.raises(LockedError, match=f"process {os.getpid()} on "):  # the server has given the old lock up
        take(path)
    lock.release()


def test_a_long_silence_needs_no_wait(path: Path, start: Start) -> None:
    end(start(ELSEWHERE))
    [beat] = [file for file in path.parent.iterdir() if file != path]
    os.utime(beat, (time.time() - 3600, time.time() - 3600))
    began = time.monotonic()
    take(path, notices := list[str]()).release()
    assert time.monotonic() - began < FAST.stale / 2
    assert len(notices) == 1 and "no heartbeat for 3600 s" in notices[0]


def test_a_lock_that_was_released_elsewhere_is_free_without_a_word(path: Path) -> None:
    take(path, machine=ELSEWHERE).release()
    take(path, notices := list[str]()).release()
    assert notices == []


def test_a_machine_that_booted_again_is_another_one(path: Path, start: Start) -> None:
    end(start(f"{machine_id().partition('/')[0]}/an-earlier-boot"))
    take(path, notices := list[str]()).release()
    assert "taken over" in notices[-1]


def test_a_suspended_holder_that_lost_its_lock_ends_without_writing_more(path: Path, start: Start) -> None:
    holder = start(ELSEWHERE)
    os.kill(holder.pid, signal.SIGSTOP)
    lock = take(path, notices := list[str]())
    assert "taken over" in notices[-1]
    os.kill(holder.pid, signal.SIGCONT)
    assert holder.wait(timeout=30) == 3
    assert holder.stderr is not None
    assert f"process {os.getpid()} on" in (said := holder.stderr.read()) and "taken this folder over" in said
    lock.release()


def test_one_of_two_takes_a_dead_lock_over(path: Path, start: Start) -> None:
    end(start(ELSEWHERE))
    command = [sys.executable, "-c", HOLD, str(path)]
    pipe = subprocess.PIPE
    both = [subprocess.Popen([*command, f"m{i}/b"], stdin=pipe, stdout=pipe, stderr=pipe, text=True) for i in (1, 2)]
    said = [process.stdout.readline() for process in both if process.stdout is not None]
    assert sorted(said) == ["", "held\n"]
    for process in both:
        process.kill()
        process.communicate(timeout=30)


def test_without_locks_of_the_file_system_the_heartbeat_decides(
    path: Path, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOSYS, "Function not implemented")

    holder = start(machine_id())
    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.raises(LockedError, match="which is alive"):
        take(path)
    end(holder)
    take(path, notices := list[str]()).release()
    assert "taken over" in notices[-1]


def test_a_lock_ends_with_its_last_reference(path: Path) -> None:
    lock = take(path)
    del lock
    take(path).release()


@pytest.mark.parametrize("text", ["", "process 1 on head\n", "process 1 on head\nmachine head/x\nsince 1.0\n"])
def test_a_record_that_is_incomplete_is_none(text: str) -> None:
    assert parse_record(text) is None


def test_a_record_is_read_as_it_was_written() -> None:
    record = LockRecord(process=4711, host="head", machine="head/boot", since=1.5, key="ab12")
    assert parse_record(record.to_text()) == record
    assert record.to_text().startswith("process 4711 on head\n")
