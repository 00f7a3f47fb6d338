"""Tests of which actors are replaced after a loss, and of the last step, with fakes and without processes."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
from ray.exceptions import ObjectStoreFullError

from actors.ppo_loop import PPOLoop
from actors.run_actors import RunActors
from actors.supervisor import Supervisor
from actors.waiting import PhaseContext
from rlhf.config.schema import Recipe, RecoveryConfig
from rlhf.errors import LostError, MachineryError
from rlhf.evaluation.overoptimisation import Watch
from rlhf.roles.assemble import BatchReport
from rlhf.run_state import RunState, WatchState

POLICY, REWARD, ENGINES = (
    ("policy rank 0", "policy rank 1"),
    ("reward e rank 0",),
    ("rollout engine 0", "rollout engine 1"),
)


class Running:
    """A ``PPOLoop`` with fake actors, which records replaced actors and its supervisor's events."""

    def __init__(self, restarts: int = 20) -> None:
        recipe = Recipe(name="x", recovery=RecoveryConfig(backoff_seconds=0.0, restarts=restarts))
        self.events: list[dict[str, Any]] = []
        self.replaced: list[str] = []
        self.shown: list[str] = []
        self.supervisor = Supervisor(recipe, self._report, show=self.shown.append)
        for name in (*POLICY, *REWARD, *ENGINES):
            self.supervisor.started(name, None)
        actors = SimpleNamespace(
            supervisor=self.supervisor,
            groups={names[0]: SimpleNamespace(names=names) for names in (POLICY, REWARD)},
            rebuild=lambda group: self._replace(group.names),
            publish=lambda version, context: None,
        )
        actors.lost_groups = lambda error: RunActors.lost_groups(actors, error)  # type: ignore[arg-type]
        actors.engines = SimpleNamespace(
            all=[SimpleNamespace(name=name) for name in ENGINES],
            replace=lambda engines: self._replace([engine.name for engine in engines]),
            abandon=lambda context: None,
            sleep=lambda context: None,
        )
        trainer: Any = SimpleNamespace(actors=actors, recipe=recipe, timer=SimpleNamespace(metrics=dict))
        state = RunState.start(recipe)
        self.kept: list[tuple[int, bool]] = []
        checkpoints: Any = SimpleNamespace(
            restore=lambda: (state, ()),
            restored_from="the snapshot",
            keep=lambda state, blocks, metrics, is_last: self.kept.append((state.step, is_last)),
        )
        self.loop = PPOLoop(trainer, checkpoints, (state, ()))

    def _report(self, kind: str, **details: Any) -> None:
        self.events.append({"kind": kind, **details})

    @property
    def losses(self) -> list[dict[str, Any]]:
        """Events of lost actors and results."""
        return [event for event in self.events if event["kind"].startswith("actor_")]

    def _replace(self, names: Any) -> None:
        self.replaced += names
        for name in names:
            self.supervisor.started(name, None)

    def bear(self, *errors: Exception) -> str:
        """What a call gives that fails with these first."""
        left = list(errors)

        def call() -> str:
            if left:
                raise left.pop(0)
            return "done"

        return self.loop.retry(call)


def test_all_that_are_gone_are_replaced_and_it_is_one_restart() -> None:
    running = Running(restarts=1)
    assert running.bear(LostError("the monitor killed them", (POLICY[1], ENGINES[0]), "died")) == "done"
    assert running.replaced == [ENGINES[0], *POLICY]
    assert [event["member"] for event in running.losses] == [POLICY[1], ENGINES[0]]
    assert running.supervisor.goodput.restarts == 1


@pytest.mark.parametrize("error", [LostError("an object is lost", kind="failed"), ObjectStoreFullError("full")])
def test_where_nobody_can_be_blamed_twice_everybody_is_replaced(error: Exception) -> None:
    running = Running()
    assert running.bear(error) == "done"
    assert running.replaced == [], "what was lost is computed again"
    assert running.bear(error, error) == "done"
    assert running.replaced == [*ENGINES, *POLICY, *REWARD] * 2
    assert all(event["member"] == "a result" for event in running.events if event["kind"] == "actor_failed")


def test_a_run_does_not_bear_it_for_ever() -> None:
    lost = LostError("an object is lost", kind="failed")
    with pytest.raises(MachineryError, match=r"more than recovery\.restarts = 2"):
        Running(restarts=2).bear(lost, lost, lost)


def test_a_roll_back_counts_the_samples_that_were_set_aside_by_then() -> None:
    running = Running()
    then = replace(running.loop.state, set_aside=3)
    running.loop.checkpoints = SimpleNamespace(restore=lambda: (then, ()), restored_from="")  # type: ignore[assignment]
    running.supervisor.goodput.set_aside = 5  # two of them since
    assert running.bear(LostError("killed", (POLICY[0],), "died")) == "done"
    assert running.supervisor.goodput.set_aside == 3


@pytest.mark.parametrize(
    ("done", "is_in_step", "repeated", "shown"),
    [
        (4, True, 2, "steps 3 to 4 are"),
        (3, True, 1, "step 3 is"),
        (4, False, 1, "step 3 is"),
        (3, False, 0, "no step is"),
    ],
)
def test_a_roll_back_is_an_event_and_a_line_with_the_steps_that_are_repeated(
    done: int, is_in_step: bool, repeated: int, shown: str
) -> None:
    """Step 4 fails, or the snapshot after it; three steps were completed when the last snapshot was taken."""
    running = Running()
    then = replace(running.loop.state, step=3)
    running.loop.checkpoints.restore = lambda: (then, ())  # type: ignore[method-assign]
    running.loop.state, running.loop.steps = replace(then, step=done), 5

    errors: list[Exception] = [MachineryError("enough"), LostError("killed", (POLICY[0],), "died")]

    def fail(*arguments: Any) -> Any:
        raise errors.pop()

    if is_in_step:
        running.loop._step = fail  # type: ignore[method-assign]
        with pytest.raises(MachineryError, match="enough"):
            next(running.loop._run())
    else:
        running.loop.checkpoints.keep = fail  # type: ignore[method-assign]
        running.loop._keep(BatchReport(metrics={}, samples=(), state=then.algorithm))
    restored = running.events[-1]
    assert restored.pop("seconds") >= 0
    assert restored == {"kind": "restored", "step": 3, "source": "the snapshot", "steps_repeated": repeated}
    lost, line = running.shown
    assert lost.startswith("policy rank 0 died during ")
    assert line.startswith(f"restored the snapshot after 3 completed steps: {shown} repeated, counted from 0 (")


def test_a_loss_during_the_recovery_is_one_of_its_own_phase() -> None:
    running = Running()
    state, failures = running.loop.state, [LostError("killed too", (POLICY[1],), "died")]

    def restore() -> Any:
        running.supervisor.enter_phase(PhaseContext(phase="restore"))
        if failures:
            raise failures.pop()
        return state, ()

    running.loop.checkpoints.restore = restore  # type: ignore[method-assign]
    running.supervisor.enter_phase(PhaseContext(phase="update", step=0))
    assert running.bear(LostError("killed", (POLICY[0],), "died")) == "done"
    assert [(event["member"], event["phase"]) for event in running.losses] == [
        (POLICY[0], "update"), (POLICY[1], "restore"),
    ]  # fmt: skip
    assert [event["kind"] for event in running.events].count("restored") == 1


def test_the_step_at_which_a_run_stops_early_is_its_last() -> None:
    """Its policy is needed afterwards: for answers, and as the run's model."""
    running = Running()
    stop = WatchState(watch=Watch(judgements=2, patience=1), stop="the reward misleads")
    report = BatchReport(metrics={}, samples=(), state=running.loop.state.algorithm)
    for state in (replace(running.loop.state, step=7), replace(running.loop.state, step=8, watch=stop)):
        running.loop.state = state
        running.loop._keep(report)
    running.loop.state = replace(state, step=running.loop.steps, watch=None)
    running.loop._keep(report)
    assert running.kept == [(7, False), (8, True), (running.loop.steps, True)]


ECC = "policy rank 0 failed in update: AcceleratorError: CUDA error: uncorrectable ECC error encountered"
OUT_OF_MEMORY = "policy rank 1 failed in update: OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB."


def test_a_device_that_fails_costs_its_group_and_no_restart() -> None:
    running = Running(restarts=0)
    assert running.bear(LostError(ECC, (POLICY[0],), "failed")) == "done"
    assert running.replaced == [*POLICY]
    assert [("ECC" in event["cause"], event["kind"]) for event in running.losses] == [(True, "actor_failed")]


def test_lack_of_memory_at_the_same_place_again_ends_the_run_with_what_to_change() -> None:
    running, short = Running(), LostError(OUT_OF_MEMORY, (POLICY[1],), "failed")
    with pytest.raises(MachineryError, match=r"fix: placement\.policy\.micro_batch_tokens=2048 \(it is 4096\)"):
        running.bear(short, short)
    assert running.replaced == [*POLICY], "once"


def test_a_bug_ends_the_run_at_once() -> None:
    running = Running()
    with pytest.raises(MachineryError, match="ZeroDivisionError"):
        running.bear(MachineryError("policy rank 0 failed in update: ZeroDivisionError: one by zero"))
    assert running.replaced == [] and running.events == []
