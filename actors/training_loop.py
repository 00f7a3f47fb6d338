"""Runs the steps of a stage, and rolls back to a snapshot when a trained group is lost."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from typing import Generic, TypeVar

from ray.exceptions import RayError

from actors.checkpoint_manager import SNAPSHOT, CheckpointManager, ResumePoint, State, TrainedActors
from actors.supervisor import as_loss
from actors.waiting import PhaseContext
from rlhf.errors import ClusterError, LostError, RLHFError, Stopped, Unsaved
from rlhf.tracking.spans import PhaseTimer
from rlhf.types import StepReport

Report = TypeVar("Report", bound=StepReport)


class TrainingLoop(ABC, Generic[State, Report]):
    """Runs the steps from a resume point, and rolls back when a trained group or an unidentified actor is lost.

    A roll-back restores the trained groups (see ``CheckpointManager.restore``), and the steps since then are repeated.
    """

    commits_last = False
    """Whether a checkpoint is written after the last step, because the model is needed for more than saving it."""

    def __init__(
        self,
        actors: TrainedActors,
        checkpoints: CheckpointManager[State],
        start: ResumePoint[State],
        timer: PhaseTimer,
        steps: int,
    ) -> None:
        self.checkpoints, self.timer, self.steps = checkpoints, timer, steps
        self.state, self.pregenerated_blocks = start
        self.supervisor = actors.supervisor

    @abstractmethod
    def _step(self) -> Report:
        """Run one step; the state changes only if it is completed."""

    @abstractmethod
    def _replace(self, error: LostError, context: PhaseContext) -> None:
        """Replace what is lost by new processes, in which the trained groups hold no state yet."""

    def _stop(self) -> None:
        """End work whose results a stopped run does not need: the last checkpoint needs the CPUs."""

    def begin(self) -> None:
        """Take the snapshot to which the first step can roll back, and compare its size with the grace period."""
        if self.checkpoints.config.snapshot_every:
            try:
                self.checkpoints.take_snapshot(self.state, self.pregenerated_blocks)
            except (LostError, RayError) as error:
                self._recover(error, PhaseContext(phase=SNAPSHOT, step=self.state.step))
        self.checkpoints.check_grace(self.state.step)

    def run(self) -> Iterator[tuple[int, Report]]:
        """Yield each step's number and report.

        A step that is rolled back after it was yielded is yielded again; its first record is removed from the run's
        files. A violated canary ends the run after its step was yielded.

        Raises:
            Stopped: a stop was requested; the last snapshot is committed as a checkpoint.
            Unsaved: a stop was requested, and the snapshot could not be committed.
        """
        try:
            yield from self._run()
            self.checkpoints.settle()
        except Stopped as stop:
            self._stop()
            with self.supervisor.deadlines.undisturbed():
                self.checkpoints.begin_checkpoint()
                self.checkpoints.finish_checkpoint(wait_for_it=True)
            if missing := self.checkpoints.unsaved():
                raise Unsaved(f"stopped on request ({stop.why}), but {missing}: events.jsonl says why.") from None
            raise Stopped(
                stop.why, str(self.checkpoints.committed.path) if self.checkpoints.committed else ""
            ) from None
        except ClusterError:
            raise  # no task can be waited for
        except RLHFError:
            with suppress(RLHFError), self.supervisor.deadlines.undisturbed():
                self.checkpoints.finish_checkpoint(wait_for_it=True)  # it is of an earlier step, before the error
            raise

    @property
    def is_over(self) -> bool:
        """Whether all steps are done, or the stage has ended early."""
        return self.state.step >= self.steps or self.state.stops

    def _run(self) -> Iterator[tuple[int, Report]]:
        while not self.is_over:
            begin = self._clock()
            try:
                report = self._step()
            except (LostError, RayError) as error:
                kind = error.kind if isinstance(error, LostError) else "failed"
                self.supervisor.goodput.lost(kind, self._clock() - begin)
                context = PhaseContext(phase=self.supervisor.phase, step=self.state.step)
                self._recover(error, context, end=self.state.step + 1)
                continue
            step = self.state.step - 1
            self.supervisor.step_done(step, self._clock() - begin)
            report = report.with_metrics(
                {**self.supervisor.memory(), **report.metrics, **self.supervisor.goodput.metrics()}
            )
            yield step, report
            self._keep(report)

    def _clock(self) -> float:
        """Seconds on a clock that leaves out the seconds that were counted as lost."""
        return time.perf_counter() - self.supervisor.goodput.seconds_lost

    def _keep(self, report: Report) -> None:
        """Take snapshots and write checkpoints after a step."""
        is_last = self.commits_last and self.is_over
        try:
            self.checkpoints.keep(self.state, self.pregenerated_blocks, report.metrics, is_last)
        except (LostError, RayError) as error:
            self._recover(error, PhaseContext(phase=self.supervisor.phase, step=self.state.step - 1))

    def _recover(self, error: LostError | RayError, context: PhaseContext, end: int | None = None) -> None:
        """Replace lost actors, and restore the trained groups (see ``CheckpointManager.restore``).

        Args:
            end: the first step that has not begun; by default no step is unfinished.

        Raises:
            MachineryError: the restart budget is spent.
        """
        begin, end = time.perf_counter(), self.state.step if end is None else end
        while True:
            loss = self.supervisor.with_dead_actors(as_loss(error, context))
            self.supervisor.handle_loss(loss, context)
            try:
                with self.supervisor.time_lost():
                    self._roll_back(loss, context)
                seconds = time.perf_counter() - begin
                return self.supervisor.restored(self.checkpoints.restored_from, self.state.step, end, seconds)
            except (LostError, RayError) as again:
                error, context = again, replace(context, phase=self.supervisor.phase)

    def _roll_back(self, error: LostError, context: PhaseContext) -> None:
        self._replace(error, context)
        self.state, self.pregenerated_blocks = self.checkpoints.restore()
        self.timer.metrics()  # discard the times of the aborted step
