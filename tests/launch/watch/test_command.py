"""``rlhf watch`` in a terminal, in a pipe, at the end of a run, and without a run."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from launch.cli import main
from launch.watch.folder import FolderWatch, WatchedFolder
from launch.watch.job import Follower, was_taken
from launch.watch.job_log import JobLog
from rlhf.errors import MachineryError
from tests.launch.watch.pretend import HOSTILE, Pretend

ALTERNATE, BACK, SHOWN = b"\x1b[?1049h", b"\x1b[?1049l", b"\x1b[?25h"
"""Sequences that switch a terminal to its second screen and back, and show the cursor."""
COMMAND = (sys.executable, "-m", "launch.cli", "watch")
SECONDS = 60.0
"""Timeout for expected output."""


class Terminal:
    """A command in a pseudo-terminal of 100 columns and 30 lines."""

    def __init__(self, *arguments: str) -> None:
        self._master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 30, 100, 0, 0))
        environment = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "", "LINES": ""}
        self.process = subprocess.Popen(
            [*COMMAND, *arguments],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            env={name: value for name, value in environment.items() if value},
            preexec_fn=lambda: _own_terminal(slave),
            close_fds=True,
        )
        os.close(slave)
        self.seen = b""

    def wait_for(self, *texts: bytes) -> None:
        """Read until all texts have been shown since the last call."""
        begin, end = len(self.seen), time.monotonic() + SECONDS
        while not all(text in self.seen[begin:] for text in texts):
            assert time.monotonic() < end and self._read(), self.seen[begin:].decode(errors="replace")

    def type(self, text: bytes) -> None:
        os.write(self._master, text)

    def end(self) -> int:
        """Read to the end; returns the exit code."""
        while self._read():
            pass
        return self.process.wait(SECONDS)

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        os.close(self._master)

    def _read(self) -> bool:
        if not select.select([self._master], [], [], SECONDS)[0]:
            return False
        try:
            piece = os.read(self._master, 65536)
        except OSError:  # nobody is left at the other end
            return False
        self.seen += piece
        return bool(piece)


def _own_terminal(slave: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # a shell has what it starts in the background ignore it
    os.setsid()
    fcntl.ioctl(slave, termios.TIOCSCTTY, 0)


@contextmanager
def terminal(*arguments: str) -> Iterator[Terminal]:
    found = Terminal(*arguments)
    try:
        yield found
    finally:
        found.close()


def test_in_a_terminal_it_follows_a_run_to_its_end(tmp_path: Path) -> None:
    run = Pretend(tmp_path / "demo", steps=3)
    run.status("rollout", 0)
    with terminal(str(tmp_path / "demo" / "ppo")) as shown:
        shown.wait_for(ALTERNATE, b"demo", b"step 0 of 3", b" rollout 0:")
        run.step(0, HOSTILE)
        run.status("update", 1)
        shown.wait_for(b"step 1 of 3", b"[2J[31mred5Agnp.exe", b" update 0:")
        run.event("actor_died", member="critic rank 0", step=1, phase="update", cause="killed")
        shown.wait_for(b"critic rank 0 died in update of step 1: killed")
        run.step(1)
        run.step(2)
        run.run.finish({})
        assert shown.end() == 0
    assert b"\x1b[31mred" not in shown.seen and b"\x1b]0;" not in shown.seen  # what the model wrote
    assert b"\x07" not in shown.seen
    after = shown.seen[shown.seen.index(BACK) :]
    assert SHOWN in shown.seen
    assert re.search(rb"step 3 of 3.*demo: ppo finished 20\d\d-", after, flags=re.DOTALL)


def test_ctrl_c_leaves_the_terminal_and_the_run_as_they_were(tmp_path: Path) -> None:
    run = Pretend(tmp_path / "demo")
    with terminal(str(tmp_path / "demo")) as shown:
        shown.wait_for(ALTERNATE, b"no step")
        shown.type(b"\x03")
        assert shown.end() == 0
    assert b"the run continues" in shown.seen[shown.seen.rindex(BACK) :]
    assert SHOWN in shown.seen[shown.seen.rindex(ALTERNATE) :]
    assert b"Traceback" not in shown.seen
    assert not (run.run.path / "done.json").exists()


def test_a_terminal_is_left_as_it_was_when_the_command_is_ended(tmp_path: Path) -> None:
    Pretend(tmp_path / "demo")
    with terminal(str(tmp_path / "demo")) as shown:
        shown.wait_for(ALTERNATE, b"no step")
        shown.process.send_signal(signal.SIGTERM)
        assert shown.end() == 128 + signal.SIGTERM
    assert BACK in shown.seen and SHOWN in shown.seen


def test_without_a_terminal_it_prints_a_line_a_step(tmp_path: Path) -> None:
    run = Pretend(tmp_path / "demo", steps=2)
    with subprocess.Popen([*COMMAND, str(tmp_path / "demo")], stdout=subprocess.PIPE, text=True) as command:
        assert command.stdout is not None
        assert command.stdout.readline().startswith("demo: ppo (")
        run.step(0)
        assert command.stdout.readline() == "ppo  1/2  score 0  KL 0  length 20  2 s  about 0:02 left\n"
        run.event("failed", exit_code=3, message="no more")
        assert command.stdout.readline().endswith("  ppo  failed: no more\n")
        assert command.stdout.readline() == "demo: ppo failed, exit code 3: no more\n"
        assert command.wait(SECONDS) == 0


def test_it_waits_for_a_run_that_is_about_to_begin(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def begin() -> None:
        Pretend(tmp_path / "demo").run.finish({})

    later = threading.Timer(1.0, begin)
    later.start()
    assert main(["watch", str(tmp_path / "demo" / "ppo"), "--wait", "60"]) == 0
    later.join()
    out, err = capsys.readouterr()
    assert "ppo: no run there yet; waiting 60 s for it" in err
    assert "ppo finished" in out


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["nowhere", "--once"], "nowhere is not there"),
        (["nowhere", "--wait", "0.1"], "is not there"),
        (["empty", "--once"], "no run has begun in"),
        (["file", "--once"], "file is no folder"),
        ([], "give a run's folder, or --job JOB"),
    ],
)
def test_what_is_no_run_is_refused(
    tmp_path: Path,
    arguments: list[str],
    expected: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("")
    assert main(["watch", *arguments]) == 2
    assert expected in capsys.readouterr().err


def test_once_shows_a_single_picture(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = Pretend(tmp_path / "demo")
    run.step(0)
    run.status("score", 1)
    assert main(["watch", str(tmp_path / "demo"), "--once"]) == 0
    out = capsys.readouterr().out
    assert "step 1 of 4" in out and "policy rank 1" in out and "\x1b" not in out


def test_a_job_is_followed_by_its_log(tmp_path: Path) -> None:
    more = threading.Event()

    def follow(show: object) -> int:
        assert callable(show)
        show("PPO  1/4  score 0.5  0:10 pas")
        show("sed, 0:30 left\n")
        assert more.wait(SECONDS)
        show("saved\n")
        return 75

    follower = Follower(follow, JobLog("quickstart-1", "http://127.0.0.1:8265"))
    follower.settle()
    view = follower.view(None)
    assert (view.title, view.done, view.steps, view.ending) == ("quickstart-1", 1, 4, None)
    run = Pretend(tmp_path / "demo")
    run.event("failed", message="and is restarted by the job")
    view = follower.view(FolderWatch(WatchedFolder.of(tmp_path / "demo")).poll())
    assert view.ending is None  # the job goes on
    assert (view.title, view.stage, view.log.total) == ("quickstart-1", "ppo", 1)
    more.set()
    follower.settle()
    view = follower.view(None)
    assert view.log.items[-1] == "saved"
    assert view.ending is not None and view.ending.text == "ended with exit code 75" and not view.ending.good


def test_a_job_that_cannot_be_followed_is_explained() -> None:
    def follow(show: object) -> int:
        raise MachineryError("the job was killed")

    follower = Follower(follow, JobLog("job", "address"))
    follower.settle()
    ending = follower.view(None).ending
    assert ending is not None and ending.text == "no longer followed: the job was killed"


def test_a_folder_of_before_the_job_is_not_its_own(tmp_path: Path) -> None:
    assert not was_taken(tmp_path, 0)
    Pretend(tmp_path / "demo")
    now = time.time()
    assert was_taken(tmp_path / "demo", now - 60)
    assert not was_taken(tmp_path / "demo", now + 60)


def test_a_folder_of_runs_names_them_at_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("first", "second"):
        Pretend(tmp_path / name).run.finish({})
    assert main(["watch", str(tmp_path)]) == 2
    err = capsys.readouterr().err
    assert "is no run, and holds 2: " in err and "first" in err and f"rlhf watch {tmp_path}/" in err
