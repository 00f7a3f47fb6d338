"""Processes of a run are killed, stopped and stuck in the middle of their work; the run ends as if nothing had been.

Signals from outside, and faults that are aimed at one moment from within (``aimed``); with ZeRO 1, and 3 where there is
time. What is lost costs one restart, whether it is one process or a group.
"""

from __future__ import annotations

import signal
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from rlhf.recovery.facts import host_memory
from rlhf.storage.jsonl import read_lines
from tests.end_to_end.faults import ENGINE, FEW, REWARD_RANK, Fault, Faults, Run, Survived, from_nothing, patient
from tests.end_to_end.small import make_data_and_reward

MANY = Faults(
    steps=7,
    aimed="rank-dies@0 slow@0 sender-dies@1 vllm-fails@2 group-stalls@4 unreadable@6",
    sent=(
        Fault(step=1, phase="rollout", member=ENGINE, delay=0.3),
        Fault(step=3, phase="score", member=REWARD_RANK),
        Fault(step=5, phase="update", member="critic rank 0"),
        Fault(step=6, phase="rollout", member=ENGINE, signal=signal.SIGSTOP, delay=0.3),
    ),
    lost=(
        (0, "update", "policy rank 1", "actor_died"),
        (1, "rollout", ENGINE, "actor_died"),
        (1, "publish", "policy rank 0", "actor_died"),
        (2, "rollout", ENGINE, "actor_failed"),
        (3, "score", REWARD_RANK, "actor_died"),
        (4, "score", "policy rank 0", "actor_stalled"),
        (5, "update", "critic rank 0", "actor_died"),
        (6, "rollout", ENGINE, "actor_stalled"),
        (6, "update", "policy rank 0", "actor_failed"),
    ),
)


def survive(folder: Path, faults: Faults, *settings: str) -> Survived:
    """One run to which all of it is done."""
    make_data_and_reward(folder, seconds=0.3)  # long enough to be killed in
    (folder / "marks").mkdir()
    run = Run(
        folder,
        "hit",
        [*from_nothing(folder, "hit"), f"ppo.steps={faults.steps}", *patient(faults), *settings],
        program="tests.end_to_end.aimed",
        AIMED=faults.aimed,
        AIMED_MARKS=str(folder / "marks"),
    )
    hit = tuple(run.do(fault) for fault in faults.sent)
    return Survived(path=run.path, code=run.end(), hit=hit, said=run.said(), faults=faults)


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(FEW, id="few"),
        pytest.param(MANY, id="many", marks=pytest.mark.slow),
        pytest.param(replace(MANY, zero_stage=3), id="many-zero3", marks=pytest.mark.slow),
    ],
)
def survived(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Survived:
    """A run that has the budget of one restart for each of its losses; with few of them it was also resumed."""
    if request.param is FEW:
        found: Survived = request.getfixturevalue("resumed")
        return found
    return survive(tmp_path_factory.mktemp("survival"), request.param)


def test_the_run_ends_well_with_every_step_once_and_every_sample_there(survived: Survived) -> None:
    assert survived.is_whole()


def test_every_loss_is_recorded_with_role_rank_node_process_step_and_phase(survived: Survived) -> None:
    recorded = []
    for event in survived.losses.values():
        group_stalled = event["kind"] == "actor_stalled" and event["member"].startswith("policy")
        member = "policy rank 0" if group_stalled else event["member"]  # whichever rank was late first
        recorded.append((event["step"], event["phase"], member, event["kind"]))
    assert recorded == list(survived.faults.lost)
    assert {event["node"] for event in survived.losses.values()} == {"127.0.0.1"}
    for fault, process in zip(survived.faults.sent, survived.hit, strict=True):
        assert survived.losses[fault.step, fault.phase]["process"] == process


def test_causes_are_recorded(survived: Survived) -> None:
    causes = {place: event["cause"] for place, event in survived.losses.items()}
    killed = next((step, phase) for step, phase, member, _ in survived.faults.lost if member == ENGINE)
    assert "killed (SIGKILL leaves no trace)" in causes[killed]
    if survived.faults.lost != MANY.lost:
        return
    group, stopped, unread = (survived.losses[place] for place in ((4, "score"), (6, "rollout"), (6, "update")))
    assert causes[2, "rollout"] == "the inference engine failed"
    assert {group["member"], *group["others"]} <= {"policy rank 0", "policy rank 1"}, "a group that stalls is one loss"
    assert "busy" in group["cause"] and group["doing"].startswith("logprobs for ")
    assert stopped["cause"] == "the process is stopped (SIGSTOP, or a debugger)"
    assert stopped["process_state"] == "T"
    assert "cannot be read" in unread["what"] and "invalid literal for int" in unread["what"]


def test_lost_actors_were_replaced(survived: Survived) -> None:
    """A group is rebuilt whole: its ranks meet again."""
    expected: Counter[str] = Counter()
    for _, _, member, _ in survived.faults.lost:
        expected.update(["policy rank 0", "policy rank 1"] if member.startswith("policy") else [member])
    assert expected == Counter(event["member"] for event in survived.events if event["kind"] == "actor_replaced")


def test_lost_samples_were_dispatched_again_and_counted(survived: Survived) -> None:
    last = read_lines(survived.path / "metrics.jsonl")[-1]
    redone = {place: event["samples_redone"] for place, event in survived.losses.items()}
    # Losses within seconds of one another count as one restart, where the later one may follow from the first.
    assert len(survived.faults.lost) / 2 <= last["health/restarts"] <= len(survived.faults.lost)
    assert last["health/redispatched"] == sum(redone.values())
    of_samples = {(step, phase) for step, phase, member, _ in survived.faults.lost if member in (ENGINE, REWARD_RANK)}
    assert all(redone[place] <= 32 for place in of_samples)
    assert any(redone[place] for place in of_samples), (
        "a signal may come after an engine's last answer, not all of them"
    )
    assert all(redone[place] == 0 for place in redone.keys() - of_samples), "the whole step is repeated"
    assert 0 < last["perf/goodput"] < 1
    assert last["health/seconds_lost"] > 0


@pytest.mark.slow
@pytest.mark.parametrize("zero_stage", [1, 3])
def test_an_update_of_the_engines_may_be_left_open_at_any_moment(zero_stage: int, tmp_path: Path) -> None:
    """Before the first chunk, after some, after all but the last, and by a peer: ZeRO 3 gathers from it."""
    aimed = "sender-dies-at-once@0 sender-dies@1 sender-dies-late@2 peer-dies@3"
    run = survive(tmp_path, Faults(steps=5, aimed=aimed, sent=(), lost=(), zero_stage=zero_stage))
    assert run.is_whole()
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
    faults = Faults(steps=3, aimed="", sent=(), lost=())
    survived = Survived(path=run.path, hit=(), code=run.end(), said=run.said(), faults=faults)
    assert survived.is_whole()
    [killed] = [e for e in survived.events if REWARD_RANK in (e.get("member"), *e.get("others", ())) and "cause" in e]
    assert killed["step"] == 1 and "GB used / " in killed["what"]
    assert killed["cause"] == "Ray's memory monitor killed it: its node ran low on memory"
