"""Ray's own processes are killed under a run: it ends with who died, leaves nothing, and the same command resumes."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
from ray.cluster_utils import Cluster

from rlhf.recovery.reaper import OWN_FILE, members, session_of
from rlhf.storage.jsonl import read_lines
from tests.end_to_end.faults import Run, from_nothing
from tests.end_to_end.small import make_data_and_reward, make_small_data, overrides

END_SECONDS = 30.0
"""Longest time from the death of one of Ray's processes to the end of the command."""
GONE_SECONDS = 12.0
"""Longest time from the end of a command that could not clean up to the end of all that it left."""
NAMES = {"raylet": "raylet", "gcs_server": "GCS"}
AGENTS = {"dashboard_agent": "DashboardAgent", "runtime_env_agent": "RuntimeEnvAgent"}


@dataclass(frozen=True, kw_only=True)
class Processes:
    """Processes of a run's Ray, their sessions, and the ids of those that are Ray's own."""

    sessions: frozenset[int]
    all: frozenset[int]
    own: dict[str, int]

    def are_gone(self, seconds: float = GONE_SECONDS) -> bool:
        """Whether none of them is there, after at most so long, and none of their files."""
        until = time.monotonic() + seconds
        while (left := [*members(self.sessions), *self.files()]) and time.monotonic() < until:
            time.sleep(0.05)
        assert not left, left
        return True

    def files(self) -> list[str]:
        """Their files in shared memory."""
        names = [OWN_FILE.fullmatch(name) for name in os.listdir("/dev/shm")]
        return [name[0] for name in names if name and int(name["process"]) in self.all]


def processes_of(run: Run) -> Processes:
    """The processes of the Ray that a command has started, and of its reaper."""
    children = [child for child in psutil.Process(run.process.pid).children() if child.name() != "wandb-core"]
    sessions = frozenset(child.pid for child in children)
    assert all(os.getsid(each) == each for each in sessions)
    own = {child.name(): child.pid for child in children if child.name() in NAMES}
    for process in psutil.process_iter(["pid", "cmdline"]):
        for name, title in AGENTS.items():
            if title in " ".join(process.info["cmdline"] or ()) and session_of(process.pid) in sessions:
                own[name] = process.pid
    assert own.keys() == {*NAMES, *AGENTS}
    return Processes(sessions=sessions, all=frozenset(members(sessions)), own=own)


def fails(run: Run, processes: Processes, victim: str) -> dict[str, Any]:
    """Kill one of Ray's processes; returns the event with which the run has ended by itself, in time."""
    begin = time.monotonic()
    os.kill(processes.own[victim], signal.SIGKILL)
    assert run.end(END_SECONDS) == 3, run.said()
    assert time.monotonic() - begin < END_SECONDS
    assert processes.are_gone(seconds=1.0)
    event: dict[str, Any] = [each for each in read_lines(run.path / "events.jsonl") if each["kind"] == "failed"][-1]
    assert (event["error"], event["exit_code"]) == ("ClusterError", 3)
    assert event["message"].splitlines()[0] in run.said() and "Traceback" not in run.said()
    died = f"{NAMES[victim]} (process {processes.own[victim]})" if victim in NAMES else victim.replace("_", " ")
    assert f"Ray's {died} ended" in event["message"]
    return event


def settings_of(folder: Path) -> list[str]:
    """SFT with a checkpoint every two steps."""
    return [*overrides(folder, "ray"), "sft.epochs=6", "checkpoint.supervised_every=2", "tracking.wandb=disabled"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder: Path = tmp_path_factory.mktemp("ray")
    make_small_data(folder)
    return folder


def steps(events: Iterable[dict[str, Any]], kind: str) -> list[int]:
    return [event["step"] for event in events if event["kind"] == kind]


def test_a_dead_raylet_ends_the_run_and_the_same_command_goes_on_until_its_terminal_is_closed(folder: Path) -> None:
    settings = [*settings_of(folder), "sft.epochs=60"]  # it must not end before its terminal is closed
    run = Run(folder, "ray", settings, stage="sft")
    run.wait_for_checkpoint(4)
    event = fails(run, processes_of(run), "raylet")
    assert "killed by SIGKILL; likely cause: it was killed by a signal" in event["message"]
    last = run.path / "checkpoints" / f"step_{max(steps(read_lines(run.path / 'events.jsonl'), 'checkpoint'))}"
    assert event["message"].endswith(f"The same command resumes from the last checkpoint, {last}.")

    resumed = Run(folder, "ray", settings, stage="sft")
    status = resumed.wait_for(None, "update")
    processes = processes_of(resumed)
    resumed.process.send_signal(signal.SIGHUP)
    assert resumed.end() == 75, resumed.said()
    assert processes.are_gone(seconds=0.0), "the command has ended them itself"
    events = read_lines(run.path / "events.jsonl")
    assert f"step_{steps(events, 'resumed')[-1]}" == last.name and status["step"] >= steps(events, "resumed")[-1]
    stopped = events[-1]
    assert stopped["kind"] == "stopped" and stopped["message"].startswith("stopped on request (SIGHUP)")
    assert f"step_{steps(events, 'checkpoint')[-1]}, the same command resumes" in stopped["message"]


@pytest.mark.slow  # a whole start for each; the test above kills the raylet
@pytest.mark.parametrize("victim", ["gcs_server", *AGENTS])
def test_the_gcs_and_the_agents_are_as_important_as_the_raylet(victim: str, folder: Path) -> None:
    name = f"ray-{victim}"
    run = Run(folder, name, [*settings_of(folder), f"name={name}"], stage="sft")
    run.wait_for_checkpoint(4)
    fails(run, processes_of(run), victim)


@pytest.mark.slow  # a cluster, and a whole start for each; tests/actors/test_ray_watch.py has a GCS of another host
@pytest.mark.parametrize(
    ("victim", "kind"), [*((name, signal.SIGKILL) for name in NAMES), ("gcs_server", signal.SIGSTOP)]
)
def test_a_cluster_that_was_joined_is_watched_too(victim: str, kind: signal.Signals, folder: Path) -> None:
    head: Any = {"num_cpus": 2, "object_store_memory": 256 * 2**20, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    try:
        name = f"joined-{victim}-{kind.name}"
        settings = [*settings_of(folder), f"name={name}", f"placement.ray_address={cluster.address}", "sft.epochs=60"]
        run = Run(folder, name, settings, stage="sft", RAY_gcs_rpc_server_reconnect_timeout_s="6")
        run.wait_for_checkpoint(4)
        [process] = cluster.head_node.all_processes[victim]
        os.kill(process.process.pid, kind)
        assert run.end(END_SECONDS) == 3, run.said()
        event = read_lines(run.path / "events.jsonl")[-1]
        died = (
            f"GCS at {cluster.address}" if victim == "gcs_server" else f"raylet (process {process.process.pid}) ended"
        )
        assert event["error"] == "ClusterError" and event["message"].startswith(f"Ray's {died}")
        assert "The same command resumes from the last checkpoint" in run.said()
    finally:
        cluster.shutdown()


@pytest.mark.slow  # whole starts of PPO, with its engines; tests/actors/test_cluster.py kills a command with an actor
@pytest.mark.parametrize("phase", ["rollout", "update", "publish", "snapshot"])
def test_in_any_phase_of_ppo_with_a_dead_raylet_or_a_killed_command_nothing_is_left(phase: str, tmp_path: Path) -> None:
    make_data_and_reward(tmp_path, seconds=0.1)
    settings = [*from_nothing(tmp_path, "left"), "ppo.steps=50", "checkpoint.snapshot_every=1", "checkpoint.every=1"]
    run = Run(tmp_path, "left", settings)
    run.wait_for(2, phase)
    fails(run, processes_of(run), "raylet")

    killed = Run(tmp_path, "left", settings)
    status = killed.wait_for(None, phase)
    processes = processes_of(killed)
    os.kill(int(status["members"]["policy rank 1"]["process"]), signal.SIGSTOP)
    killed.process.kill()
    assert killed.end() == -signal.SIGKILL
    assert processes.are_gone()

    insisted = Run(tmp_path, "left", settings)
    insisted.wait_for(None, phase)
    processes = processes_of(insisted)
    insisted.process.send_signal(signal.SIGTERM)
    time.sleep(0.6)
    insisted.process.send_signal(signal.SIGTERM)
    assert insisted.end() in (143, 75), "the checkpoint may be complete by then"
    assert processes.are_gone()
