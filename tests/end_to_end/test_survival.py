"""Processes of a run are killed, stopped and stuck in the middle of their work; the run ends as if nothing had been.

Signals from outside, and faults that are aimed at one moment from within (``aimed``); with ZeRO 1, and 3 where there is
time. What is lost costs one restart, whether it is one process or a group.
"""

from __future__ import annotations

import signal
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from rlhf.recovery.facts import host_memory
from rlhf.storage.jsonl import read_lines
from tests.end_to_end.faults import Fault, Run, from_nothing
from tests.end_to_end.small import make_data_and_reward

STEPS = 7
ENGINE, REWARD_RANK = "rollout engine 0", "reward e rank 0"
SENT = (
    Fault(step=1, phase="rollout", member=ENGINE, delay=0.3),
    Fault(step=2, phase="rollout", member=ENGINE, child=True, delay=0.3),
    Fault(step=3, phase="score", member=REWARD_RANK),
    Fault(step=5, phase="update", member="critic rank 0"),
    Fault(step=6, phase="rollout", member=ENGINE, signal=signal.SIGSTOP, delay=0.3),
)
AIMED = "rank-dies@0 slow@0 sender-dies@1 group-stalls@4 unreadable@6"
LOST = (
    (0, "update", "policy rank 1", "actor_died"),
    (1, "rollout", ENGINE, "actor_died"),
    (1, "publish", "policy rank 0", "actor_died"),
    (2, "rollout", ENGINE, "actor_died"),
    (3, "score", REWARD_RANK, "actor_died"),
    (4, "score", "policy rank 0", "actor_stalled"),
    (5, "update", "critic rank 0", "actor_died"),
    (6, "rollout", ENGINE, "actor_stalled"),
    (6, "update", "policy rank 0", "actor_failed"),
)
"""Step, phase, member and kind of each loss, in their order."""


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
    def losses(self) -> dict[tuple[int, str], dict[str, Any]]:
        """By step and phase."""
        kinds = ("actor_died", "actor_stalled", "actor_failed")
        return {(event["step"], event["phase"]): event for event in self.events if event["kind"] in kinds}

    def is_whole(self, steps: int) -> bool:
        """Whether it ended well, with every step once and every sample there."""
        assert self.code == 0, self.said
        rows = read_lines(self.path / "metrics.jsonl")
        assert [row["step"] for row in rows] == list(range(steps))
        assert all(row["rollout/dropped"] == 0 and row["rollout/set_aside"] == 0 for row in rows)
        assert all(row["rollout/staleness_mean"] == 0 for row in rows)
        return (self.path / "model" / "model.safetensors").exists()


def survive(folder: Path, zero_stage: int, steps: int, aimed: str, sent: tuple[Fault, ...], *settings: str) -> Survived:
    """One run to which all of it is done. Its budget is one restart for each."""
    make_data_and_reward(folder, seconds=0.3)  # long enough to be killed in
    (folder / "marks").mkdir()
    stages = [f"placement.{role}.zero_stage={zero_stage}" for role in ("policy", "critic")]
    settings = (f"ppo.steps={steps}", "recovery.stall_floor_seconds=15", "recovery.stall_factor=3", *stages, *settings)
    run = Run(
        folder,
        "hit",
        [*from_nothing(folder, "hit"), *settings],
        program="tests.end_to_end.aimed",
        AIMED=aimed,
        AIMED_MARKS=str(folder / "marks"),
    )
    hit = tuple(run.do(fault) for fault in sent)
    return Survived(path=run.path, code=run.end(), hit=hit, said=run.said())


@pytest.fixture(scope="module", params=[1, pytest.param(3, marks=pytest.mark.slow)], ids=["zero1", "zero3"])
def survived(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Survived:
    """One run to which all of it is done."""
    folder = tmp_path_factory.mktemp("survival")
    return survive(folder, request.param, STEPS, AIMED, SENT, f"recovery.restarts={len(LOST)}")


def test_the_run_ends_well_with_every_step_once_and_every_sample_there(survived: Survived) -> None:
    assert survived.is_whole(STEPS)


def test_every_loss_is_told_with_role_rank_node_process_step_and_phase(survived: Survived) -> None:
    told = [(e["step"], e["phase"], e["member"], e["kind"]) for e in survived.losses.values()]
    group = LOST.index((4, "score", "policy rank 0", "actor_stalled"))
    told[group] = (*told[group][:2], told[group][2].replace("1", "0"), told[group][3])  # whichever was late first
    assert told == list(LOST)
    assert {event["node"] for event in survived.losses.values()} == {"127.0.0.1"}
    for fault, process in zip(SENT, survived.hit, strict=True):
        assert fault.child or survived.losses[fault.step, fault.phase]["process"] == process


def test_causes_are_told(survived: Survived) -> None:
    child, group, stopped, unread = (
        survived.losses[place] for place in ((2, "rollout"), (4, "score"), (6, "rollout"), (6, "update"))
    )
    assert child["cause"] == "the inference engine's own process is gone"
    assert {group["member"], *group["others"]} <= {"policy rank 0", "policy rank 1"}, "a group that stalls is one loss"
    assert "busy" in group["cause"] and group["doing"].startswith("logprobs for ")
    assert stopped["cause"] == "the process is stopped (SIGSTOP, or a debugger)"
    assert stopped["process_state"] == "T"
    assert "cannot be read" in unread["what"] and "invalid literal for int" in unread["what"]


def test_whoever_was_lost_was_replaced(survived: Survived) -> None:
    replaced = Counter(event["member"] for event in survived.events if event["kind"] == "actor_replaced")
    assert replaced == {ENGINE: 3, REWARD_RANK: 1, "policy rank 0": 4, "policy rank 1": 4, "critic rank 0": 1}


def test_lost_samples_were_given_out_again_and_counted(survived: Survived) -> None:
    last = read_lines(survived.path / "metrics.jsonl")[-1]
    redone = {place: event["samples_redone"] for place, event in survived.losses.items()}
    assert last["health/restarts"] == len(LOST)
    assert last["health/redispatched"] == sum(redone.values())
    engines_and_reward = {(1, "rollout"), (2, "rollout"), (3, "score"), (6, "rollout")}
    assert all(0 < redone[place] <= 32 for place in engines_and_reward)
    assert all(redone[place] == 0 for place in redone.keys() - engines_and_reward), "the whole step is repeated"
    assert 0 < last["perf/goodput"] < 1
    assert last["health/seconds_lost"] > 0


@pytest.mark.slow
@pytest.mark.parametrize("zero_stage", [1, 3])
def test_an_update_of_the_engines_may_be_left_open_at_any_moment(zero_stage: int, tmp_path: Path) -> None:
    """Before the first chunk, after some, after all but the last, and by a peer: ZeRO 3 gathers from it."""
    aimed = "sender-dies-at-once@0 sender-dies@1 sender-dies-late@2 peer-dies@3"
    run = survive(tmp_path, zero_stage, 5, aimed, ())
    assert run.is_whole(5)
    assert [(step, phase) for step, phase in run.losses] == [(step, "publish") for step in range(4)]
    assert "actor_replaced" not in {event["kind"] for event in run.events if event.get("member") == ENGINE}


HUNGRY = """
from pathlib import Path

CALLS = Path(__file__).with_name("calls")

def score(prompts, responses):
    with CALLS.open("a") as calls:
        calls.write(".")
    held = []
    while len(CALLS.read_text()) == 6:
        held.append(bytearray(b"x" * 2**28))
    return [response.count("e") / max(1, len(response)) for response in responses]
"""
"""A reward that takes all memory once: in its sixth block, of the second step."""


@pytest.mark.slow
def test_actors_that_ray_s_memory_monitor_kills_are_replaced(tmp_path: Path) -> None:
    """It kills several actors at once, of several roles: the monitor itself, whose threshold is some gigabytes away."""
    make_data_and_reward(tmp_path)
    (tmp_path / "reward.py").write_text(HUNGRY)
    total, available = host_memory()
    assert total is not None and available is not None
    monitor = {
        "RAY_memory_usage_threshold": str((total - available + 9 * 2**30) / total),
        "RAY_memory_monitor_refresh_ms": "100",
    }
    run = Run(tmp_path, "hit", [*from_nothing(tmp_path, "hit"), "ppo.steps=3", "recovery.restarts=4"], **monitor)
    survived = Survived(path=run.path, hit=(), code=run.end(), said=run.said())
    assert survived.is_whole(3)
    [killed] = [e for e in survived.events if REWARD_RANK in (e.get("member"), *e.get("others", ())) and "cause" in e]
    assert killed["step"] == 1 and "GB used / " in killed["what"]
    assert killed["cause"] == "Ray's memory monitor killed it: its node ran low on memory"
