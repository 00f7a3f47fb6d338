"""The whole PPO loop. The controller holds references, counts and versions; tokens go from actor to actor."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

import numpy as np

from actors.crew import Crew
from actors.scoring import Scoring
from actors.waiting import Moment
from rlhf.data.order import PromptOrder
from rlhf.roles.assemble import BatchReport
from rlhf.run_state import RunState
from rlhf.tracking.phases import PhaseTimer

SAMPLING = 10**9 + 1  # tells this stream of random numbers from those of other uses of the same seed


class PPOTrainer:
    """One step of PPO over a crew of actors. Who makes many steps of it, whatever happens, is ``survival``."""

    def __init__(self, crew: Crew, prompts: int) -> None:
        self.crew, self.recipe, self.prompts = crew, crew.recipe, prompts
        self.timer = PhaseTimer()
        self.between: Callable[[], None] = lambda: None
        """Called between phases, for what goes on beside them."""

    def step(self, state: RunState) -> tuple[BatchReport, RunState]:
        """One step, under the weights of version ``state.step``; returns what it found, and the state after it."""
        crew, ppo, step = self.crew, self.recipe.ppo, state.step
        with self.timer("step"):
            # 1. Prompts: the next of a seeded order, each as often as it is to be answered, and a seed for every answer
            order = PromptOrder.restore(self.prompts, self.recipe.seed, state.order)
            chosen = order.take(ppo.batch_size // ppo.samples_per_prompt)
            prompts = [prompt for prompt in chosen for _ in range(ppo.samples_per_prompt)]
            draw = np.random.default_rng([self.recipe.seed, SAMPLING, step])
            seeds = draw.integers(2**31, size=len(prompts)).tolist()

            # 2. Rollout, and 3. Score: every block is scored by four models while the next is still being generated
            scoring, faults = Scoring(crew, Moment(phase="score", step=step)), 0
            with self.phase("rollout", step) as moment:
                for block, answered in crew.engines.generate(prompts, seeds, moment):
                    scoring.send(block, len(answered.places))
                    faults += crew.supervisor.set_aside(answered.faults, state.set_aside + faults, moment)
            with self.phase("score", step) as moment:
                crew.engines.sleep(moment)
                parts = scoring.settle()

            # 4. Advantages: over the global batch, in one place
            with self.phase("advantages", step):
                experience, report = crew.assemble(step, state.algorithm, parts)

            # 5. Update: critic and policy at the same time, on every rank the same number of passes
            with self.phase("update", step):
                metrics = crew.update(experience, step)

            # 6. Publish: every engine proves the new version before it serves
            with self.phase("publish", step) as moment:
                crew.publish(step + 1, moment)
        after = replace(
            state, step=step + 1, order=order.state(), algorithm=report.state, set_aside=state.set_aside + faults
        )
        return self.record(step, report, metrics), after

    @contextmanager
    def phase(self, name: str, step: int) -> Iterator[Moment]:
        """Within the block the run is in this phase: it is timed, and everybody can see it."""
        self.between()
        moment = Moment(phase=name, step=step)
        self.crew.supervisor.enter(moment)
        with self.timer(name):
            yield moment

    def record(self, step: int, report: BatchReport, metrics: dict[str, float]) -> BatchReport:
        """7. Record: what was measured, where the time went, how fast it was."""
        times = self.timer.metrics()
        tokens, algorithm = report.metrics["rollout/tokens"], self.recipe.algorithm
        updates = metrics.get("policy/updates", algorithm.epochs * algorithm.minibatches)
        rates = {
            "perf/rollout_tokens_per_second": tokens / times["time/rollout"],
            "perf/train_tokens_per_second": tokens * updates / algorithm.minibatches / times["time/update"],
            "perf/samples_per_second": self.recipe.ppo.batch_size / times["time/step"],
            "weights/sync_seconds": times["time/publish"],
            "weights/version": float(step + 1),
            "episode": float((step + 1) * self.recipe.ppo.batch_size),
        }
        return report.with_metrics(metrics | times | rates)
