"""The training loop of SFT, reward model and DPO, which resumes, and replaces ranks that fail."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from ray.exceptions import RayError

from actors.checkpoint_manager import CheckpointManager, ResumePoint, open_checkpoints
from actors.group import Group
from actors.session import Session
from actors.supervised import Summary, latest_values, recorded_rows, recorded_seconds, select_metrics
from actors.training_loop import TrainingLoop
from actors.waiting import START, PhaseContext
from rlhf.config.schema import Recipe
from rlhf.errors import LostError
from rlhf.run_state import StageState
from rlhf.tracking.run_folder import RunFolder
from rlhf.tracking.spans import PhaseTimer
from rlhf.tracking.tracker import Tracker
from rlhf.types import StepReport


class SupervisedActors:
    """The ranks of the one role that a supervised stage trains; ``prepare`` gives them the data."""

    def __init__(self, recipe: Recipe, group: Group, prepare: Callable[[], object]) -> None:
        self.recipe, self.group, self.prepare, self.supervisor = recipe, group, prepare, group.supervisor

    @property
    def trained(self) -> dict[str, Group]:
        """The group, by role."""
        return {self.group.role: self.group}

    def rebuild(self, group: Group) -> None:
        """Replace the ranks with new ones, which have the initial model and the data."""
        with self.supervisor.time_lost():
            group.rebuild()
            self.prepare()


@dataclass(frozen=True, kw_only=True)
class TrainingResult:
    """Outcome of a supervised stage: the last value of every metric, what ``finish`` returned, and costs."""

    latest: dict[str, float]
    results: Summary
    costs: Summary
    """Goodput, failures, and the seconds of each phase, over all commands of the stage."""


@dataclass(frozen=True, kw_only=True)
class Training:
    """Updates on ``batches`` (indices into the ranks' data), with ``evaluate(step)`` at intervals and at the end.

    ``shown`` maps the names on the progress line to metric names.
    """

    title: str
    batches: Sequence[Sequence[int]]
    prepare: Callable[[], object]
    """Gives the data to ranks that were just built."""
    evaluate: Callable[[int], Mapping[str, float]]
    eval_every: int
    finish: Callable[[], Summary | None]
    """Saves the model after the last step; returns results that depend on the model."""
    shown: Mapping[str, str]

    def run(
        self, session: Session, run: RunFolder, group: Group, tracker: Tracker, timer: PhaseTimer
    ) -> TrainingResult:
        """Train from the last checkpoint, or from the initial model, to the end."""
        supervisor, steps = group.supervisor, len(self.batches)
        actors = SupervisedActors(session.recipe, group, self.prepare)
        self.prepare()
        supervisor.steps = steps
        loop = SupervisedLoop(
            self, actors, *open_checkpoints(session, run, tracker, actors, timer, StageState(step=0)), timer
        )
        loop.begin()
        timer.add(START, timer.created)
        latest = latest_values(recorded_rows(run))
        with session.console.stage(self.title, steps) as report:
            for step, result in loop.run():
                tracker.log(step, result.metrics)
                latest |= result.metrics
                report(step + 1, select_metrics(latest, self.shown))
        costs = {**supervisor.summary(), **recorded_seconds([*recorded_rows(run), timer.metrics()])}
        return TrainingResult(latest=latest, results=loop.results, costs=costs)


class SupervisedLoop(TrainingLoop[StageState, StepReport]):
    """Runs the updates and evaluations of a supervised stage, and finishes it."""

    def __init__(
        self,
        training: Training,
        actors: SupervisedActors,
        checkpoints: CheckpointManager[StageState],
        start: ResumePoint[StageState],
        timer: PhaseTimer,
    ) -> None:
        super().__init__(actors, checkpoints, start, timer, len(training.batches))
        self.training, self.actors = training, actors
        self.results: Summary = {}
        """What ``finish`` returned."""

    def _run(self) -> Iterator[tuple[int, StepReport]]:
        """Run the steps, and finish; if ranks are lost meanwhile, the steps since the last snapshot are repeated."""
        while True:
            yield from super()._run()
            try:
                self.results = self.training.finish() or {}
                return self.checkpoints.finish_checkpoint(wait_for_it=True)
            except (LostError, RayError) as error:
                self._recover(error, PhaseContext(phase=self.supervisor.phase))

    def _step(self) -> StepReport:
        step = self.state.step
        self.supervisor.begin_step(step)
        with self.timer.spans("step", step):
            metrics = self._update(step)
            if (step + 1) % self.training.eval_every == 0 or step + 1 == self.steps:
                self.supervisor.enter_phase(PhaseContext(phase="evaluate", step=step))
                with self.timer("evaluate", step):
                    metrics |= self.training.evaluate(step)
        self.state = replace(self.state, step=step + 1)
        return StepReport(metrics=metrics | self.timer.metrics())

    def _update(self, step: int) -> dict[str, float]:
        context = PhaseContext(phase="update", step=step)
        self.supervisor.enter_phase(context)
        with self.timer("update", step):
            metrics: dict[str, float] = self.actors.group.ask("update", self.training.batches[step], context=context)[0]
            return metrics

    def _replace(self, error: LostError, context: PhaseContext) -> None:
        if error.names or self.supervisor.should_replace_all:  # else only a result was lost
            self.actors.rebuild(self.actors.group)
