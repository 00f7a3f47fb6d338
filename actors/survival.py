"""The steps of a run, whatever happens to its actors: a step that lost the policy or the critic is done again."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from typing import Protocol, TypeVar

from ray.exceptions import RayError

from actors.keeper import Keeper, Kept
from actors.supervisor import as_loss
from actors.trainer import PPOTrainer
from actors.waiting import Moment
from rlhf.algorithms import canaries
from rlhf.errors import LostError, MachineryError, RLHFError, Stopped
from rlhf.roles.assemble import BatchReport
from rlhf.run_state import RunState, WatchState

Row = tuple[int, BatchReport]
Result = TypeVar("Result")


class Observer(Protocol):
    """Looks at the policy between steps."""

    def begin(self) -> WatchState:
        """Look at it before the first step."""

    def after(self, state: RunState, report: BatchReport) -> tuple[Mapping[str, float], WatchState]:
        """Look at it after a step; returns what is to be recorded with the step, and where the observer stands."""


class Survivor:
    """Makes the steps of a run, from what was kept on, and keeps it. A step that lost somebody is repeated."""

    def __init__(self, trainer: PPOTrainer, keeper: Keeper, kept: Kept) -> None:
        self.trainer, self.keeper = trainer, keeper
        self.state, self.ahead = kept
        self.crew, self.supervisor = trainer.crew, trainer.crew.supervisor
        self.steps = trainer.recipe.ppo.steps
        trainer.between = lambda: keeper.finish_checkpoint(wait_for_it=False)
        self.limits = canaries.Limits.of(
            trainer.recipe.canaries, trainer.recipe.model.dtype, trainer.recipe.ppo.staleness
        )

    def begin(self) -> None:
        """Have the engines hold the policy as it is, and keep that as what a first step goes back to."""
        moment = Moment(phase="publish", step=self.state.step)
        try:
            self.crew.publish(self.state.step, moment)
            if self.trainer.recipe.checkpoint.snapshot_every:
                self.keeper.take(self.state, self.ahead)
        except (LostError, RayError) as error:
            self._recover(error, moment)

    def run(self, observer: Observer | None) -> Iterator[Row]:
        """Yield each step's metrics and samples; a step that is repeated may be yielded again, its record having been
        taken back. A canary outside its limits ends the run once its step is reported.

        Raises:
            Stopped: the run was asked to stop, and has kept what it had.
        """
        try:
            yield from self._run(observer)
        except Stopped as stop:
            self.crew.engines.kill()  # nobody waits for their answers, and the checkpoint wants the processors
            with self.supervisor.patience.undisturbed():
                self.keeper.begin_checkpoint()
                self.keeper.finish_checkpoint(wait_for_it=True)
            raise Stopped(stop.why, str(self.keeper.committed.path) if self.keeper.committed else "") from None
        except RLHFError:
            with suppress(RLHFError), self.supervisor.patience.undisturbed():
                self.keeper.finish_checkpoint(wait_for_it=True)  # of a step before, when all was well
            raise

    def surely(self, call: Callable[[], Result]) -> Result:
        """What a call gives that uses the policy as it is now, between steps; again where an actor was lost in it.

        Raises:
            MachineryError: what was lost was kept only as it was some steps ago.
        """
        while True:
            try:
                return call()
            except (LostError, RayError) as error:
                step = self.state.step
                self._recover(error, Moment(phase=self.supervisor.phase, step=step))
                if self.state.step != step:
                    raise MachineryError(
                        f"{error}; the policy of step {step} went with it. {self.keeper.last()} The "
                        "same command goes on from there."
                    ) from error

    @property
    def is_over(self) -> bool:
        """Whether there is no step left to make."""
        return self.state.step >= self.steps or bool(self.state.watch and self.state.watch.stop)

    def _run(self, observer: Observer | None) -> Iterator[Row]:
        while not self.is_over:
            begin, lost = time.perf_counter(), self.supervisor.seconds_lost
            try:
                report = self._step(observer)
            except (LostError, RayError) as error:
                self.supervisor.wasted(error, time.perf_counter() - begin - (self.supervisor.seconds_lost - lost))
                self._recover(error, Moment(phase=self.supervisor.phase, step=self.state.step))
                continue
            step = self.state.step - 1
            self.supervisor.step_done(step, time.perf_counter() - begin - (self.supervisor.seconds_lost - lost))
            report = report.with_metrics(
                {**self.supervisor.memory(), **report.metrics, **self.supervisor.goodput.metrics()}
            )
            yield step, report
            canaries.check(report.metrics, step, self.limits)
            self._keep(report)

    def _step(self, observer: Observer | None) -> BatchReport:
        """One step, and a look at the policy after it; only a step that was completed moves the state."""
        state = self.state
        if observer is not None and state.watch is None:
            state = replace(state, watch=observer.begin())
        self.supervisor.begin(state.step)
        report, state, ahead = self.trainer.step(state, self.ahead)
        if observer is not None:
            seen, watch = observer.after(state, report)
            report, state = report.with_metrics(seen), replace(state, watch=watch)
        self.state, self.ahead = state, ahead
        return report

    def _keep(self, report: BatchReport) -> None:
        try:
            self.keeper.keep(self.state, self.ahead, report.metrics)
        except (LostError, RayError) as error:
            self._recover(error, Moment(phase=self.supervisor.phase, step=self.state.step - 1))

    def _recover(self, error: LostError | RayError, moment: Moment) -> None:
        """Replace who was lost, put the policy and the critic back to what was kept last, and publish that.

        Raises:
            MachineryError: the run has borne as much as it is to bear.
        """
        while True:
            loss = self.supervisor.located(as_loss(error, moment))
            self.supervisor.lost(loss, moment)
            try:
                with self.supervisor.waiting():
                    return self._go_back(loss, moment)
            except (LostError, RayError) as again:
                error = again

    def _go_back(self, error: LostError, moment: Moment) -> None:
        crew, engines = self.crew, self.crew.engines
        suspects_all = not error.names and self.supervisor.suspects_all
        engines.replace([engine for engine in engines.all if suspects_all or engine.name in error.names])
        engines.abandon(moment)
        engines.sleep(moment)  # where they share GPUs, what is put back needs the room
        for group in list(crew.groups.values()) if suspects_all else crew.lost_groups(error):
            crew.rebuild(group)
        self.state, self.ahead = self.keeper.restore()
        self.trainer.timer.metrics()  # what was measured was of a step that is done again
        self.supervisor.goodput.set_aside = self.state.set_aside
        self.crew.publish(self.state.step, Moment(phase="publish", step=self.state.step))
