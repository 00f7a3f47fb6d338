"""A command's fork server begins with its actors' imports when the command begins, and ends with it."""

from __future__ import annotations

import os
import socket
import subprocess
from pathlib import Path
from typing import Any

import psutil
import pytest

from actors import preload
from actors.fork_client import RAYLET, SERVER, connect
from actors.preload import PUBLISHING, ROLE_MODULES, modules_of, modules_of_engine, preloading
from rlhf.config.load import load_recipe
from rlhf.config.schema import Recipe, Stage

ENGINE = modules_of_engine("cpu", publishes=True)


@pytest.fixture
def servers(monkeypatch: pytest.MonkeyPatch) -> list[subprocess.Popen[bytes]]:
    """The servers that are started; they import little."""
    started, start = list[subprocess.Popen[bytes]](), preload.start_server

    def record(*arguments: Any, **options: Any) -> subprocess.Popen[bytes]:
        started.append(start(*arguments, **options))
        return started[-1]

    monkeypatch.setattr(preload, "start_server", record)
    monkeypatch.setattr(preload, "modules_of", lambda stages: ("colorsys",))
    monkeypatch.setattr(preload, "NVIDIA_GPUS", Path("/nowhere"))
    monkeypatch.setenv(SERVER, "another command's")
    monkeypatch.setenv(RAYLET, "1")  # of a Ray in which this command is a job
    return started


def recipe(*settings: str) -> Recipe:
    return load_recipe("recipes/quickstart.yaml", settings)


def test_what_is_awaited_longest_comes_first() -> None:
    assert modules_of(("sft",)) == ROLE_MODULES
    assert modules_of(("ppo",)) == (*ENGINE, *ROLE_MODULES, *PUBLISHING)
    assert modules_of(("sft", "reward", "ppo")) == (*ROLE_MODULES, *ENGINE, *PUBLISHING)


def test_an_engine_that_gets_no_weights_does_not_import_what_hashes_them() -> None:
    assert set(ENGINE) - set(modules_of_engine("cpu", publishes=False)) == {"rlhf.weights.hash_loop"}
    assert modules_of_engine("cuda", publishes=True) == modules_of_engine("cuda", publishes=False)


def test_actors_find_the_server_and_it_ends_with_the_block(servers: list[subprocess.Popen[bytes]]) -> None:
    with preloading(recipe("placement.threads_per_rank=3"), "ppo") as sessions:
        with connect(os.environ) as connection:
            peer = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
            assert int.from_bytes(peer[:4], "little") == os.getpid(), "whoever listened first: the command"
        [server] = servers
        assert sessions == [server.pid] == [os.getsid(server.pid)], "it ends with Ray's processes"
        process = psutil.Process(server.pid)
        assert process.cmdline()[-1] == "colorsys" and os.getpgid(server.pid) == server.pid
        variables = process.environ()
        assert variables["OMP_NUM_THREADS"] == "3" and variables["VLLM_NO_USAGE_STATS"] == "1"
        assert variables["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] == "0"
        assert variables["RAY_AUTH_MODE"] == "token" and variables["RAY_JOB_ID"] == "01000000", "as a worker has them"
        assert variables[RAYLET] == str(os.getpid()) and SERVER not in variables
    assert server.returncode is not None and SERVER not in os.environ


@pytest.mark.parametrize(
    ("command", "settings"),
    [
        ("ppo", ["placement.start_method=spawn"]),
        ("ppo", ["placement.ray_address=10.0.0.1:6379"]),
        ("ppo", ["placement.device=cuda"]),
        ("generate", []),
    ],
)
def test_none_is_started_where_actors_are_not_forked(
    command: Stage, settings: list[str], servers: list[subprocess.Popen[bytes]]
) -> None:
    with preloading(recipe(*settings), command):
        assert servers == [] and SERVER not in os.environ


def test_none_is_started_beside_gpus(
    servers: list[subprocess.Popen[bytes]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "0000:01:00.0").mkdir()
    monkeypatch.setattr(preload, "NVIDIA_GPUS", tmp_path)
    with preloading(recipe(), "ppo"):
        assert servers == []


def test_one_that_does_not_end_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preload, "END_SECONDS", 0.1)
    with subprocess.Popen(["bash", "-c", "trap '' TERM; echo ready; sleep 60"], stdout=subprocess.PIPE) as stuck:
        assert stuck.stdout is not None and stuck.stdout.readline() == b"ready\n"
        preload._end(stuck)
        assert stuck.returncode == -9
