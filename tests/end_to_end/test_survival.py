"""Processes of a run are killed and stopped, each in the middle of its work; the run ends as if nothing had been."""

from __future__ import annotations

import signal
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from rlhf.tracking.jsonl import read_lines
from tests.end_to_end.faults import Fault, Run, from_nothing
from tests.end_to_end.small import make_data_and_reward

STEPS = 7
ENGINE, REWARD_RANK = "rollout engine 0", "reward e rank 0"
FAULTS = (
    Fault(step=1, phase="rollout", member=ENGINE, delay=0.3),
    Fault(step=2, phase="rollout", member=ENGINE, child=True, delay=0.3),
    Fault(step=3, phase="score", member=REWARD_RANK),
    Fault(step=4, phase="update", member="policy rank 1"),
    Fault(step=5, phase="update", member="critic rank 0"),
    Fault(step=6, phase="rollout", member=ENGINE, signal=signal.SIGSTOP, delay=0.3),
)


@dataclass(frozen=True, kw_only=True)
class Survived:
    """A run that is over: its folder, its exit code, and the processes that were hit."""

    path: Path
    code: int
    hit: tuple[int, ...]
    said: str

    @property
    def events(self) -> list[dict[str, Any]]:
        return read_lines(self.path / "events.jsonl")

    @property
    def losses(self) -> list[dict[str, Any]]:
        return [event for event in self.events if event["kind"] in ("actor_died", "actor_stalled", "actor_failed")]


@pytest.fixture(scope="module")
def survived(tmp_path_factory: pytest.TempPathFactory) -> Survived:
    """One run to which all of it is done, a fault a step."""
    folder = tmp_path_factory.mktemp("survival")
    make_data_and_reward(folder, seconds=0.3)  # long enough to be killed in
    settings = [f"ppo.steps={STEPS}", "recovery.stall_floor_seconds=30", "recovery.stall_factor=3"]
    run = Run(folder, "hit", [*from_nothing(folder, "hit"), *settings])
    hit = tuple(run.do(fault) for fault in FAULTS)
    return Survived(path=run.path, code=run.end(), hit=hit, said=run.said())


def test_the_run_ends_well_with_every_step_once_and_every_sample_there(survived: Survived) -> None:
    assert survived.code == 0, survived.said
    rows = read_lines(survived.path / "metrics.jsonl")
    assert [row["step"] for row in rows] == list(range(STEPS))
    assert all(row["rollout/dropped"] == 0 and row["rollout/set_aside"] == 0 for row in rows)
    assert all(row["rollout/staleness_mean"] == 0 for row in rows)
    assert (survived.path / "model" / "model.safetensors").exists()


def test_every_loss_is_told_with_role_rank_node_process_step_and_phase(survived: Survived) -> None:
    told = [(e["step"], e["phase"], e["member"], e["node"]) for e in survived.losses]
    assert told == [(fault.step, fault.phase, fault.member, "127.0.0.1") for fault in FAULTS]
    parents = [event["process"] for event, fault in zip(survived.losses, FAULTS, strict=True) if not fault.child]
    assert parents == [process for process, fault in zip(survived.hit, FAULTS, strict=True) if not fault.child]


def test_causes_are_told(survived: Survived) -> None:
    by_step = {event["step"]: event for event in survived.losses}
    assert by_step[2]["cause"] == "the inference engine's own process is gone"
    assert by_step[6]["kind"] == "actor_stalled"
    assert by_step[6]["cause"] == "the process is stopped (SIGSTOP, or a debugger)"
    assert by_step[6]["process_state"] == "T"


def test_whoever_was_lost_was_replaced(survived: Survived) -> None:
    replaced = Counter(event["member"] for event in survived.events if event["kind"] == "actor_replaced")
    assert replaced == {ENGINE: 3, REWARD_RANK: 1, "policy rank 0": 1, "policy rank 1": 1, "critic rank 0": 1}


def test_lost_samples_were_given_out_again_and_counted(survived: Survived) -> None:
    last = read_lines(survived.path / "metrics.jsonl")[-1]
    redone = [event["samples_redone"] for event in survived.losses]
    assert last["health/restarts"] == len(FAULTS)
    assert last["health/redispatched"] == sum(redone)
    assert all(0 < redone[i] <= 32 for i in (0, 1, 2, 5)), "of an engine, and of a reward that was scoring"
    assert redone[3:5] == [0, 0], "a policy or a critic has its whole step repeated"
    assert 0 < last["perf/goodput"] < 1
    assert last["health/seconds_lost"] > 0
