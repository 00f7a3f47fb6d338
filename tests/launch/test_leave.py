"""What a pod does before it ends: real processes are asked to stop, once and again, and are waited for."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from launch import leave as leaving
from launch.leave import has_actors, is_command, leave

PYTHON = "/opt/rlhf/.venv/bin/python"


@pytest.mark.parametrize(
    "line",
    [
        "python -m launch.attempt --job runs/.attempts/rlhf.json pipeline recipes/x.yaml placement.ray_address=auto",
        "python -m launch.job ppo submitted.yaml",
        f"{PYTHON} /opt/rlhf/.venv/bin/rlhf sft recipes/x.yaml",
    ],
)
def test_commands_that_train_are_found(line: str) -> None:
    assert is_command(line.split())


@pytest.mark.parametrize(
    "line",
    [
        "",
        "python -m launch.leave 140",
        f"{PYTHON} /opt/rlhf/.venv/bin/rlhf watch runs/ppo",
        f"{PYTHON} /opt/rlhf/.venv/bin/ray job submit --address x -- exec python -m launch.attempt f pipeline r.yaml",
        "/bin/sh -c python -m launch.attempt f pipeline r.yaml",
        "ray::Worker.call",
    ],
)
def test_other_processes_are_left_alone(line: str) -> None:
    assert not is_command(line.split())


def test_a_pod_with_actors_is_told_from_an_idle_one() -> None:
    assert has_actors(["python x", "ray::IDLE", "ray::Worker.call"])
    assert not has_actors(["ray::IDLE", "ray::RuntimeEnvAgent", "ray::DashboardAgent", "ray::JobSupervisor", "bash"])


COMMAND = """
import signal, sys, time
asked = []
signal.signal(signal.SIGUSR1, lambda *_: asked.append("USR1"))
signal.signal(signal.SIGTERM, lambda *_: asked.append("TERM"))
print("ready", flush=True)
while not asked:
    time.sleep(0.01)
time.sleep(0.5)  # it commits its checkpoint
print(*asked, flush=True)
"""
UNREADY = """
import signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: sys.exit(print("TERM", flush=True)))
print("ready", flush=True)
time.sleep(60)
"""

Started = list[subprocess.Popen[str]]


@pytest.fixture
def own(monkeypatch: pytest.MonkeyPatch) -> Iterator[Started]:
    """Processes of this test, the only ones that are found: others may run on this machine."""
    started: Started = []
    ours = lambda words: any(process.args == list(words) for process in started)  # noqa: E731
    monkeypatch.setattr(leaving, "is_command", lambda words: is_command(words) and ours(words))
    yield started
    for process in started:
        process.kill()
        process.communicate(timeout=30)


def start(own: Started, folder: Path, text: str) -> subprocess.Popen[str]:
    """A stand-in for ``python -m launch.attempt``: the same command line, in a folder with a module of that name."""
    package = folder / "launch"
    package.mkdir(exist_ok=True)
    (package / "__init__.py").touch()
    (package / "attempt.py").write_text(text)
    command: Sequence[str] = [sys.executable, "-m", "launch.attempt", "f.json", "pipeline", f"{folder}/recipe.yaml"]
    process = subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, text=True)
    own.append(process)
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    return process


def test_it_waits_until_the_commands_have_ended(own: Started, tmp_path: Path) -> None:
    process = start(own, tmp_path, COMMAND)
    began = time.monotonic()
    assert leave(30) == 1
    assert 0.4 < time.monotonic() - began < 20
    assert process.wait(timeout=5) == 0
    assert process.stdout is not None and process.stdout.read() == "USR1\n"


def test_a_command_that_has_not_begun_is_ended_by_sigterm(own: Started, tmp_path: Path) -> None:
    process = start(own, tmp_path, UNREADY)
    assert leave(30) == 1
    assert process.stdout is not None and process.stdout.read() == "TERM\n"


def test_it_waits_no_longer_than_it_may(own: Started, tmp_path: Path) -> None:
    start(own, tmp_path, COMMAND.replace("sleep(0.5)", "sleep(60)"))
    began = time.monotonic()
    assert leave(1.0) == 1
    assert time.monotonic() - began < 10


def test_an_idle_pod_ends_at_once(own: Started, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leaving, "is_actor", lambda title: False)
    assert leave(30) == 0
