"""Runs the steps of a PPO run, and rolls back to a snapshot when the policy or the critic is lost."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from typing import Protocol, TypeVar

from ray.exceptions import RayError

from actors.checkpoint_manager import CheckpointManager, ResumePoint
from actors.supervisor import as_loss
from actors.trainer import PPOTrainer
from actors.waiting import PhaseContext
from rlhf.algorithms import canaries
from rlhf.errors import LostError, MachineryError, RLHFError, Stopped
from rlhf.roles.assemble import BatchReport
from rlhf.run_state import RunState, WatchState

Row = tuple[int, BatchReport]
Result = TypeVar("Result")


class Observer(Protocol):
    """Evaluates the policy between steps."""

    def begin(self) -> WatchState:
        """Evaluate the policy before the first step."""

    def after(self, state: RunState, report: BatchReport) -> tuple[Mapping[str, float], WatchState]:
        """Evaluate the policy after a step; returns metrics to record with the step, and the observer's state."""


class TrainingLoop:
    """Runs the steps from a resume point, and rolls back when the policy, the critic or an unidentified actor is lost.

    A roll-back restores policy and critic (see ``CheckpointManager.restore``), and the steps since then are repeated.
    """

    def __init__(self, trainer: PPOTrainer, checkpoints: CheckpointManager, start: ResumePoint) -> None:
        self.trainer, self.checkpoints = trainer, checkpoints
        self.state, self.pregenerated_blocks = start
        self.actors, self.supervisor = trainer.actors, trainer.actors.supervisor
        self.steps = trainer.recipe.ppo.steps
        trainer.between_phases = lambda: checkpoints.finish_checkpoint(wait_for_it=False)
        recipe = trainer.recipe
        self.limits = canaries.Limits.of(
            recipe.canaries, recipe.model.dtype, recipe.ppo.staleness, recipe.algorithm.narrowest_clip
        )

    def begin(self) -> None:
        """Publish the current policy to the engines, and take the snapshot to which the first step can roll back."""
        context = PhaseContext(phase="publish", step=self.state.step)
        try:
            self.actors.publish(self.state.step, context)
            if self.trainer.recipe.checkpoint.snapshot_every:
                self.checkpoints.take_snapshot(self.state, self.pregenerated_blocks)
        except (LostError, RayError) as error:
            self._recover(error, context)

    def run(self, observer: Observer | None) -> Iterator[Row]:
        """Yield each step's number and report.

        A step that is rolled back after it was yielded is yielded again; its first record is removed from the run's
        files. A violated canary ends the run after its step was yielded.

        Raises:
            Stopped: a stop was requested; the last snapshot is committed as a checkpoint.
        """
        try:
            yield from self._run(observer)
        except Stopped as stop:
            self.actors.engines.kill()  # their answers are not needed, and the checkpoint needs the CPUs
            with self.supervisor.deadlines.undisturbed():
                self.checkpoints.begin_checkpoint()
                self.checkpoints.finish_checkpoint(wait_for_it=True)
            raise Stopped(
                stop.why, str(self.checkpoints.committed.path) if self.checkpoints.committed else ""
            ) from None
        except RLHFError:
            with suppress(RLHFError), self.supervisor.deadlines.undisturbed():
                self.checkpoints.finish_checkpoint(wait_for_it=True)  # it is of an earlier step, before the error
            raise

    def retry(self, call: Callable[[], Result]) -> Result:
        """Call a function that uses the current policy, between steps; recover and repeat it if an actor is lost.

        Raises:
            MachineryError: the policy was lost, and the last snapshot or checkpoint is of an earlier step.
        """
        while True:
            try:
                return call()
            except (LostError, RayError) as error:
                step = self.state.step
                self._recover(error, PhaseContext(phase=self.supervisor.phase, step=step))
                if self.state.step != step:
                    raise MachineryError(
                        f"{error}; the policy of step {step} is lost with it. {self.checkpoints.describe_last()} The "
                        "same command resumes from there."
                    ) from error

    @property
    def is_over(self) -> bool:
        """Whether all steps are done, or early stopping has ended the run."""
        return self.state.step >= self.steps or bool(self.state.watch and self.state.watch.stop)

    def _run(self, observer: Observer | None) -> Iterator[Row]:
        while not self.is_over:
            begin = self._clock()
            try:
                report = self._step(observer)
            except (LostError, RayError) as error:
                kind = error.kind if isinstance(error, LostError) else "failed"
                self.supervisor.goodput.lost(kind, self._clock() - begin)
                self._recover(error, PhaseContext(phase=self.supervisor.phase, step=self.state.step))
                continue
            step = self.state.step - 1
            self.supervisor.step_done(step, self._clock() - begin)
            report = report.with_metrics(
                {**self.supervisor.memory(), **report.metrics, **self.supervisor.goodput.metrics()}
            )
            yield step, report
            canaries.check(report.metrics, step, self.limits)
            self._keep(report)

    def _clock(self) -> float:
        """Seconds on a clock that leaves out the seconds that were counted as lost."""
        return time.perf_counter() - self.supervisor.goodput.seconds_lost

    def _step(self, observer: Observer | None) -> BatchReport:
        """Run one step and the observer after it; the state changes only if both are completed."""
        state = self.state
        if observer is not None and state.watch is None:
            state = replace(state, watch=observer.begin())
        self.supervisor.begin_step(state.step)
        report, state, pregenerated_blocks = self.trainer.step(state, self.pregenerated_blocks)
        if observer is not None:
            seen, watch = observer.after(state, report)
            report, state = report.with_metrics(seen), replace(state, watch=watch)
        self.state, self.pregenerated_blocks = state, pregenerated_blocks
        return report

    def _keep(self, report: BatchReport) -> None:
        try:
            self.checkpoints.keep(self.state, self.pregenerated_blocks, report.metrics)
        except (LostError, RayError) as error:
            self._recover(error, PhaseContext(phase=self.supervisor.phase, step=self.state.step - 1))

    def _recover(self, error: LostError | RayError, context: PhaseContext) -> None:
        """Replace lost actors, restore policy and critic (see ``CheckpointManager.restore``), and publish the policy.

        Raises:
            MachineryError: the restart budget is spent.
        """
        while True:
            loss = self.supervisor.with_dead_actors(as_loss(error, context))
            self.supervisor.handle_loss(loss, context)
            try:
                with self.supervisor.time_lost():
                    return self._roll_back(loss, context)
            except (LostError, RayError) as again:
                error = again

    def _roll_back(self, error: LostError, context: PhaseContext) -> None:
        actors, engines = self.actors, self.actors.engines
        should_replace_all = not error.names and self.supervisor.should_replace_all
        engines.replace([engine for engine in engines.all if should_replace_all or engine.name in error.names])
        engines.abandon(context)
        engines.sleep(context)  # on shared GPUs, the restored state needs their memory
        for group in list(actors.groups.values()) if should_replace_all else actors.lost_groups(error):
            actors.rebuild(group)
        self.state, self.pregenerated_blocks = self.checkpoints.restore()
        self.trainer.timer.metrics()  # discard the times of the aborted step
        self.supervisor.goodput.set_aside = self.state.set_aside
        self.actors.publish(self.state.step, PhaseContext(phase="publish", step=self.state.step))
