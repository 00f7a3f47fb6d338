"""The loop over the steps of PPO: held-out evaluation, canaries, and what a roll-back does with the engines."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Protocol, TypeVar

from ray.exceptions import RayError

from actors.checkpoint_manager import CheckpointManager, ResumePoint
from actors.trainer import PPOTrainer
from actors.training_loop import TrainingLoop
from actors.waiting import PhaseContext
from rlhf.algorithms import canaries
from rlhf.errors import LostError, MachineryError
from rlhf.roles.assemble import BatchReport
from rlhf.run_state import RunState, WatchState

Result = TypeVar("Result")


class Observer(Protocol):
    """Evaluates the policy between steps."""

    def begin(self) -> WatchState:
        """Evaluate the policy before the first step."""

    def after(self, state: RunState, report: BatchReport) -> tuple[Mapping[str, float], WatchState]:
        """Evaluate the policy after a step; returns metrics to record with the step, and the observer's state."""


class PPOLoop(TrainingLoop[RunState, BatchReport]):
    """Runs PPO's steps; a lost policy or critic is rolled back, and the policy published again."""

    commits_last = True

    def __init__(
        self,
        trainer: PPOTrainer,
        checkpoints: CheckpointManager[RunState],
        start: ResumePoint[RunState],
        observer: Observer | None = None,
    ) -> None:
        recipe = trainer.recipe
        super().__init__(trainer.actors, checkpoints, start, trainer.timer, recipe.ppo.steps)
        self.trainer, self.actors, self.observer = trainer, trainer.actors, observer
        trainer.between_phases = lambda: checkpoints.finish_checkpoint(wait_for_it=False)
        self.limits = canaries.Limits.of(
            recipe.canaries, recipe.model.dtype, recipe.ppo.staleness, recipe.algorithm.narrowest_clip
        )

    def begin(self) -> None:
        """Publish the current policy to the engines, and take the snapshot to which the first step can roll back."""
        context = PhaseContext(phase="publish", step=self.state.step)
        try:
            self.actors.publish(self.state.step, context)
        except (LostError, RayError) as error:
            self._recover(error, context)
        super().begin()

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

    def _step(self) -> BatchReport:
        """Run one step and the observer after it; the state changes only if both are completed."""
        state, observer = self.state, self.observer
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
        canaries.check(report.metrics, self.state.step - 1, self.limits)
        super()._keep(report)

    def _stop(self) -> None:
        self.actors.engines.kill()  # their answers are not needed

    def _replace(self, error: LostError, context: PhaseContext) -> None:
        actors, engines = self.actors, self.actors.engines
        should_replace_all = not error.names and self.supervisor.should_replace_all
        engines.replace([engine for engine in engines.all if should_replace_all or engine.name in error.names])
        engines.abandon(context)
        engines.sleep(context)  # on shared GPUs, the restored state needs their memory
        for group in list(actors.groups.values()) if should_replace_all else actors.lost_groups(error):
            actors.rebuild(group)

    def _roll_back(self, error: LostError, context: PhaseContext) -> None:
        """Replace lost actors, restore policy and critic, and publish the policy."""
        super()._roll_back(error, context)
        self.supervisor.goodput.set_aside = self.state.set_aside
        self.actors.publish(self.state.step, PhaseContext(phase="publish", step=self.state.step))
