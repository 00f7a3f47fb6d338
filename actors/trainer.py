"""The whole PPO loop. The controller holds references, counts and versions; tokens go from actor to actor."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

from actors.blocks import Asked, Block, answer, ask
from actors.crew import Crew
from actors.scoring import Scoring
from actors.waiting import Moment
from rlhf.roles.assemble import BatchReport
from rlhf.run_state import RunState
from rlhf.tracking.phases import PhaseTimer


class PPOTrainer:
    """One step of PPO over a crew of actors. Who makes many steps of it, whatever happens, is ``survival``."""

    def __init__(self, crew: Crew, prompts: int) -> None:
        self.crew, self.recipe, self.prompts = crew, crew.recipe, prompts
        self.timer = PhaseTimer(spans=crew.supervisor.timeline.spans)
        self.between: Callable[[], None] = lambda: None
        """Called between phases, for what goes on beside them."""

    def step(self, state: RunState, ahead: Sequence[Block] = ()) -> tuple[BatchReport, RunState, Sequence[Block]]:
        """One step, under the weights of version ``state.step``.

        Args:
            ahead: rollouts of this step that were generated during the one before (``ppo.staleness``).

        Returns:
            What the step found, the state after it, and the next one's rollouts where they are there already.
        """
        crew, step = self.crew, state.step
        with self.timer("step", step):
            # 1. Prompts: the next of a seeded order, each as often as it is to be answered, and a seed for every answer
            asked = ask(self.recipe, self.prompts, step, state.order)

            # 2. Rollout, and 3. Score: every block is scored by four models while the next is still being generated
            scoring, set_aside = Scoring(crew, Moment(phase="score", step=step)), state.set_aside
            with self.phase("rollout", step) as moment:
                for block in ahead or answer(crew, asked, set_aside, moment):
                    scoring.send(block.rollouts, block.samples)
                    set_aside += block.set_aside
                coming = self.begin_next(asked, set_aside)
            with self.phase("score", step) as moment:
                crew.engines.sleep(moment)
                parts = scoring.settle()

            # 4. Advantages: over the global batch, in one place
            with self.phase("advantages", step):
                experience, report = crew.assemble(step, state.algorithm, parts)

            # 5. Update: critic and policy at the same time, on every rank the same number of passes
            with self.phase("update", step):
                metrics = crew.update(experience, step)

            # 6. Publish: every engine proves the new version before it serves, and is done with the old one by then
            with self.phase("rollout", step):
                ahead = tuple(coming)
            with self.phase("publish", step) as moment:
                crew.publish(step + 1, moment)
        after = replace(state, step=step + 1, order=asked.after, algorithm=report.state, set_aside=set_aside)
        return self.record(step, report, metrics), after, ahead

    def begin_next(self, asked: Asked, set_aside: int) -> Iterator[Block]:
        """Have the engines begin with the next step while this one trains, where the recipe says so."""
        step = asked.step + 1
        if not self.recipe.ppo.staleness or step == self.recipe.ppo.steps:
            return iter(())
        following = ask(self.recipe, self.prompts, step, asked.after)
        return answer(self.crew, following, set_aside, Moment(phase="rollout", step=step))

    @contextmanager
    def phase(self, name: str, step: int) -> Iterator[Moment]:
        """Within the block the run is in this phase: it is timed, and everybody can see it."""
        self.between()
        moment = Moment(phase=name, step=step)
        self.crew.supervisor.enter(moment)
        with self.timer(name, step):
            yield moment

    def record(self, step: int, report: BatchReport, metrics: dict[str, float]) -> BatchReport:
        """7. Record: what was measured, where the time went, how fast it was."""
        times = self.timer.metrics()
        tokens = report.metrics["rollout/tokens"]
        trained = metrics.get("policy/tokens", self.recipe.algorithm.epochs * tokens)  # without it the critic warms up
        rates = {
            "perf/train_tokens_per_second": trained / times["time/update"],
            "perf/samples_per_second": self.recipe.ppo.batch_size / times["time/step"],
            "weights/sync_seconds": times["time/publish"],
            "weights/version": float(step + 1),
            "episode": float((step + 1) * self.recipe.ppo.batch_size),
        }
        if not self.recipe.ppo.staleness:  # with it the rollouts' time is beside that of the other phases
            rates["perf/rollout_tokens_per_second"] = tokens / times["time/rollout"]
        return report.with_metrics(metrics | times | rates)
