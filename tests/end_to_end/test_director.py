"""When faults of a plan are due, in what order, to which process: without a run."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.end_to_end.director import Director, Seen
from tests.end_to_end.fault_plan import (
    CONTROLLER,
    INSIDE,
    MEMBERS,
    PHASES,
    Aim,
    Marks,
    Order,
    Strike,
    plan_of_environment,
    to_environment,
)
from tests.end_to_end.planned_actors import Hand

Sent = list[tuple[int, signal.Signals]]


class Stage:
    """A director, the signals that it sends, and the actors that it is shown: process n has the n-th name."""

    def __init__(self, folder: Path, *plan: Aim) -> None:
        self.marks, self.sent = Marks(folder), Sent()
        self.director = Director(plan, self.marks, lambda process, sign: self.sent.append((process, sign)))
        names = [name for role in MEMBERS.values() for name in role]
        self.actors = {name: Seen(process=number, serves=True) for number, name in enumerate(names, 1)}

    def enter(self, phase: str, step: int | None) -> Sent:
        """The signals that were sent at this entry."""
        before = len(self.sent)
        self.director.entered(phase, step, self.actors)
        return self.sent[before:]

    def process(self, name: str) -> int:
        process = self.actors[name].process
        assert process is not None
        return process

    def replace(self, *names: str) -> None:
        for name in names:
            self.actors[name] = Seen(process=self.process(name) + 1000, serves=True)


@pytest.fixture
def stage(tmp_path: Path) -> Callable[..., Stage]:
    return lambda *plan: Stage(tmp_path, *plan)


def aim(role: str, phase: str, fault: str = "SIGKILL", step: int = 1) -> Aim:
    return Aim(role=role, phase=phase, fault=fault, step=step)


def test_an_idle_actor_is_hit_when_its_phase_is_entered_and_once(stage: Callable[..., Stage]) -> None:
    it = stage(aim("reference", "update", step=2))
    assert it.enter("update", 1) == [] and it.enter("publish", 2) == []
    assert it.enter("update", 2) == [(it.process("reference rank 0"), signal.SIGKILL)]
    it.replace("reference rank 0")
    assert it.enter("update", 3) == []


def test_the_next_fault_waits_until_the_run_is_whole_again(stage: Callable[..., Stage]) -> None:
    it = stage(aim("engine", "score"), aim("engine", "update", "SIGSTOP"))
    [(process, _)] = it.enter("score", 1)
    assert it.enter("update", 1) == [], "as far as the supervisor knows, the process still serves"
    it.replace("rollout engine 0")
    it.actors["critic rank 0"] = Seen(process=3, serves=False)
    assert it.enter("update", 2) == []
    it.actors["critic rank 0"] = Seen(process=3, serves=True)
    assert it.marks.whole() == {}
    assert it.enter("update", 3) == [(process + 1000, signal.SIGSTOP)]
    assert set(it.marks.whole()) == {0}


def test_an_actor_that_works_in_the_phase_gets_an_order_and_does_it_in_that_work(
    stage: Callable[..., Stage], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    it = stage(aim("policy", "update"), aim("critic", "update"))
    assert it.enter("update", 1) == [] and len(it.marks.orders()) == 1
    assert it.enter("update", 2) == [], "the first one has not happened yet"
    monkeypatch.setenv("FAULT_MARKS", str(tmp_path))
    killed = Sent()
    monkeypatch.setattr(os, "kill", lambda process, sign: killed.append((process, sign)))
    Hand("policy rank 0")("update")
    Hand("policy rank 1")("logprobs")
    assert killed == []
    Hand("policy rank 1")("update")
    assert killed == [(os.getpid(), signal.SIGKILL)]
    Hand("policy rank 1")("update")
    assert len(killed) == 1 and it.marks.strikes()[0].members == ("policy rank 1",)


def test_a_device_error_comes_in_the_next_work_of_an_idle_actor(
    stage: Callable[..., Stage], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    it = stage(aim("reward", "publish", "device"))
    assert it.enter("publish", 1) == []
    monkeypatch.setenv("FAULT_MARKS", str(tmp_path))
    with pytest.raises(RuntimeError, match="CUDA error"):
        Hand("reward e rank 0")("scores")
    Hand("reward e rank 0")("scores")


def test_a_fault_in_scoring_waits_for_that_phase(
    stage: Callable[..., Stage], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Scoring begins while others are generated: the order is given then, and carried out in the phase ``score``."""
    it = stage(aim("reward", "score", "device"))
    it.enter("rollout", 1)
    assert [order.phase for order in it.marks.orders()] == ["score"]
    assert not it.marks.has_come_to("score", seconds=0.01)
    monkeypatch.setenv("FAULT_MARKS", str(tmp_path))
    later = threading.Timer(0.05, lambda: it.marks.enter("score"))
    later.start()
    with pytest.raises(RuntimeError):
        Hand("reward e rank 0")("scores")
    later.join()


@pytest.mark.parametrize(("role", "first"), [("reference", "critic rank 0"), ("critic", "policy rank 1")])
def test_a_fault_in_a_recovery_is_after_another_one(role: str, first: str, stage: Callable[..., Stage]) -> None:
    it = stage(aim(role, "restore"))
    assert it.enter("restore", 1) == [], "not whole, or no recovery of this plan"
    assert it.enter("update", 1) == [(it.process(first), signal.SIGKILL)]
    it.actors[first] = Seen(process=99, serves=False)
    hit = it.enter("restore", None)
    if role == "critic":
        assert hit == [] and [order.method for order in it.marks.orders()] == ["restore"]
    else:
        assert hit == [(it.process("reference rank 0"), signal.SIGKILL)]


def test_an_order_for_work_that_did_not_come_is_given_anew(stage: Callable[..., Stage]) -> None:
    it = stage(aim("critic", "restore"))
    it.enter("update", 1)
    it.enter("restore", None)
    assert it.marks.orders()
    it.replace("policy rank 1")
    assert it.enter("update", 2) == [] and it.marks.orders(), "it may still come"
    assert it.enter("update", 3) == [(it.process("policy rank 1"), signal.SIGKILL)] and not it.marks.orders()
    it.enter("restore", None)
    assert [order.method for order in it.marks.orders()] == ["restore"]


def test_the_memory_monitor_takes_two(stage: Callable[..., Stage]) -> None:
    it = stage(aim("reference", "update", "memory"), aim("policy", "update", "memory"))
    hit = [it.process("reference rank 0"), it.process("reward e rank 0")]
    assert it.enter("update", 1) == [(process, signal.SIGKILL) for process in hit]
    it.replace("reference rank 0")
    assert it.enter("update", 2) == [] and not it.marks.orders(), "the other one is not replaced yet"
    it.replace("reward e rank 0")
    it.enter("update", 3)
    assert [order.also for order in it.marks.orders()] == [{"critic rank 0": it.process("critic rank 0")}]


def test_the_controller_is_hit_itself(stage: Callable[..., Stage]) -> None:
    it = stage(aim(CONTROLLER, "publish"))
    assert it.enter("publish", 1) == [(os.getpid(), signal.SIGKILL)]


@pytest.mark.parametrize(("fault", "error"), [("memory", MemoryError), ("device", RuntimeError)])
def test_the_controller_raises(fault: str, error: type[Exception], stage: Callable[..., Stage]) -> None:
    with pytest.raises(error):
        stage(aim(CONTROLLER, "publish", fault)).enter("publish", 1)


def test_a_command_goes_on_with_the_plan_where_the_last_one_ended(tmp_path: Path) -> None:
    plan = aim("policy", "start"), aim(CONTROLLER, "start"), aim("reward", "update")
    assert [order.method for order in Stage(tmp_path, *plan).marks.orders()] == ["build"]
    again = Stage(tmp_path, *plan)
    assert len(again.marks.orders()) == 1
    again.marks.struck(Strike(aim=0, time=0.0, members=("policy rank 1",), processes=(7,)))
    again.director.loaded()
    assert again.sent == [], "this command has had its fault"
    third = Stage(tmp_path, *plan)
    assert third.marks.orders() == []
    third.director.loaded()
    assert third.sent == [(os.getpid(), signal.SIGKILL)]


def test_the_plan_passes_through_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = [aim("policy", "save", step=7), aim("judge", "judge", "SIGSTOP")]
    for name, value in to_environment(plan, tmp_path).items():
        monkeypatch.setenv(name, value)
    assert plan_of_environment() == plan
    order = Order(aim=0, fault="SIGKILL", method="save", also={})
    Marks.of_environment().give("policy rank 1", order)
    assert Marks(tmp_path).orders() == [order]


def test_every_place_of_work_is_a_phase_and_an_actor() -> None:
    assert set(INSIDE) == set(MEMBERS)
    for role, phases in INSIDE.items():
        assert set(phases) <= set(PHASES)
        assert all(rank < len(MEMBERS[role]) for rank, _ in phases.values())
