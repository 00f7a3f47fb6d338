"""Tests of what losses count: as one incident or several, against which budget, and when they end a run."""

from __future__ import annotations

import time
from types import SimpleNamespace
from typing import Any

import pytest

from actors import supervisor as supervisor_module
from actors.supervisor import TOGETHER_SECONDS, Supervisor
from actors.waiting import PhaseContext
from rlhf.config.schema import Recipe, RecoveryConfig
from rlhf.errors import LostError, MachineryError
from rlhf.recovery.facts import Facts

NAME, PEER = "policy rank 0", "policy rank 1"


class Clock:
    """A clock that is set by hand."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


class Unwatched:
    """A supervisor of actors without processes, on a clock that is set by hand."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *names: str, **recovery: Any) -> None:
        self.clock, self.events = Clock(), list[dict[str, Any]]()
        clock = SimpleNamespace(time=self.clock, monotonic=time.monotonic, sleep=time.sleep)
        monkeypatch.setattr(supervisor_module, "time", clock)
        recipe = Recipe(name="x", recovery=RecoveryConfig(**{"backoff_seconds": 0.0, **recovery}))
        self.supervisor = Supervisor(recipe, lambda kind, **details: self.events.append({"kind": kind, **details}))
        self.start(*names)

    def start(self, *names: str) -> None:
        self.clock.now += 1
        for name in names:
            self.supervisor.started(name, None)
        self.clock.now += 1

    def lose(self, *names: str, text: str = "gone", kind: str = "died", phase: str = "update") -> None:
        self.supervisor.handle_loss(LostError(text, names, kind), PhaseContext(phase=phase, step=7))

    @property
    def restarts(self) -> int:
        return self.supervisor._history.restarts


CRITIC, ENGINE, ENGINE_1 = "critic rank 0", "rollout engine 0", "rollout engine 1"
OUT_OF_MEMORY = "policy rank 0 failed in update: OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB."


def test_what_is_reported_and_not_yet_replaced_is_not_reported_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor is its group; but another engine is: it is not lost by the first one's death."""
    run = Unwatched(monkeypatch, NAME, PEER, CRITIC, ENGINE, ENGINE_1)
    run.lose(NAME, ENGINE)
    run.clock.now += 600
    run.lose(NAME)
    run.lose(PEER, ENGINE, text="Connection closed by peer", kind="failed")
    assert (run.restarts, [event["member"] for event in run.events]) == (1, [NAME, ENGINE])
    run.lose(ENGINE_1)
    run.lose(CRITIC)
    assert run.restarts == 2, "the critic's loss is told just after the engine's"
    run.start(NAME, PEER, ENGINE)
    run.clock.now += 600
    run.lose(PEER)
    assert run.restarts == 3


def test_what_is_lost_just_after_belongs_to_the_same_incident(monkeypatch: pytest.MonkeyPatch) -> None:
    run = Unwatched(monkeypatch, NAME, ENGINE, ENGINE_1, restarts=1)
    run.lose(ENGINE)
    run.clock.now += TOGETHER_SECONDS - 1
    run.lose(ENGINE_1)
    assert run.restarts == run.supervisor.goodput.restarts == 1 and len(run.events) == 2
    run.clock.now += TOGETHER_SECONDS + 1
    with pytest.raises(MachineryError, match=r"more than recovery\.restarts = 1"):
        run.lose(NAME)


def test_a_replacement_that_dies_at_once_is_another_incident(monkeypatch: pytest.MonkeyPatch) -> None:
    run = Unwatched(monkeypatch, ENGINE, ENGINE_1)
    run.lose(ENGINE)
    run.start(ENGINE)
    run.lose(ENGINE_1)
    assert run.restarts == 1
    run.lose(ENGINE)
    assert run.restarts == 2


def test_errors_of_devices_do_not_count_as_restarts_and_have_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    run = Unwatched(monkeypatch, NAME, restarts=0, device_errors=2)
    for step in range(2):
        run.lose(NAME, text="AcceleratorError: CUDA error: uncorrectable ECC error encountered", kind="failed")
        run.start(NAME)
        run.clock.now += 60
        run.supervisor.step_done(step, 1.0)
    with pytest.raises(MachineryError, match=r"more than recovery\.device_errors = 2 errors of devices") as caught:
        run.lose(NAME, text="NCCL error in: a.cpp:1, unhandled system error", kind="failed")
    assert "NCCL_DEBUG" in str(caught.value) and run.restarts == 0
    assert ["ECC" in event["cause"] for event in run.events if event["kind"] == "actor_failed"] == [True, True, False]


def test_lack_of_memory_in_one_phase_again_ends_the_run_with_what_to_change(monkeypatch: pytest.MonkeyPatch) -> None:
    run = Unwatched(monkeypatch, NAME, ENGINE)
    for phase in ("update", "score"):
        run.lose(NAME, text=OUT_OF_MEMORY, kind="failed", phase=phase)
        run.start(NAME)
        run.clock.now += 60
    fix = r"placement\.policy\.micro_batch_tokens=2048 \(it is 4096\)"
    said = rf"ran out of memory during update again before .*\n  fix: {fix}"
    with pytest.raises(MachineryError, match=said) as caught:
        run.lose(NAME, text=OUT_OF_MEMORY, kind="failed")
    assert caught.value.exit_code == 3 and not isinstance(caught.value, LostError)
    assert len(run.events) == 3


def test_steps_give_restarts_back(monkeypatch: pytest.MonkeyPatch) -> None:
    run = Unwatched(monkeypatch, NAME, restarts=1, steps_per_restart=3)
    for first in (0, 3, 6):
        run.lose(NAME)
        run.start(NAME)
        for step in range(first, first + 3):
            run.clock.now += 60
            run.supervisor.step_done(step, 1.0)
    assert run.restarts == 0 and run.supervisor.goodput.restarts == 3


def test_roles_that_are_lost_together_have_their_own_kinds(monkeypatch: pytest.MonkeyPatch) -> None:
    found = {
        ENGINE: Facts(alive=False),
        NAME: Facts(alive=True, process_state="T"),
        CRITIC: Facts(alive=True, process_state="T"),
    }
    monkeypatch.setattr("actors.incidents._examine", lambda records, error: found)
    kinds = {"rollout engine": "actor_died", "policy": "actor_stalled", "critic": "actor_stalled"}
    for kind in ("stalled", "died"):
        run = Unwatched(monkeypatch, *found)
        run.lose(*found, kind=kind)
        assert {event["role"]: event["kind"] for event in run.events} == kinds
