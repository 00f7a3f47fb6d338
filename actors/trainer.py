"""The whole PPO loop. The controller holds references, counts and versions; tokens go from actor to actor."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from actors.crew import Crew
from actors.waiting import Moment
from rlhf.algorithms import canaries
from rlhf.algorithms.controller import AlgorithmState
from rlhf.data.order import PromptOrder
from rlhf.roles.assemble import BatchReport
from rlhf.tracking.phases import PhaseTimer

SAMPLING = 10**9 + 1  # tells this stream of random numbers from those of other uses of the same seed


class PPOTrainer:
    """Steps of PPO over a crew of actors: ``publish`` the first weights, then ``run``."""

    def __init__(self, crew: Crew, prompts: int) -> None:
        self.crew, self.recipe = crew, crew.recipe
        self.order = PromptOrder(prompts, self.recipe.seed)
        self.limits = canaries.Limits.of(self.recipe.canaries, self.recipe.model.dtype)
        self.state = AlgorithmState.start(self.recipe.algorithm)
        self.timer = PhaseTimer()

    def run(self) -> Iterator[tuple[int, BatchReport]]:
        """Yield each step's metrics and samples. A canary outside its limits ends the run once its step is reported."""
        for step in range(self.recipe.ppo.steps):
            report = self.step(step)
            yield step, report
            canaries.check(report.metrics, step, self.limits)

    def step(self, step: int) -> BatchReport:
        """One step, under the weights of version ``step``."""
        crew, ppo = self.crew, self.recipe.ppo
        with self.timer("step"):
            # 1. Prompts: the next of a seeded order, each as often as it is to be answered, and a seed for every answer
            chosen = self.order.take(ppo.batch_size // ppo.samples_per_prompt)
            prompts = [prompt for prompt in chosen for _ in range(ppo.samples_per_prompt)]
            draw = np.random.default_rng([self.recipe.seed, SAMPLING, step])
            seeds = draw.integers(2**31, size=len(prompts)).tolist()

            # 2. Rollout, and 3. Score: every block is scored by four models while the next is still being generated
            parts, pending = [], []
            with self.timer("rollout"):
                for block in crew.engines.generate(prompts, seeds, Moment(phase="rollout", step=step)):
                    pending += (scores := crew.score(block))
                    parts += [block, *scores]
            with self.timer("score"):
                crew.engines.sleep(Moment(phase="score", step=step))
                crew.wait_for_scores(pending, Moment(phase="score", step=step))

            # 4. Advantages: over the global batch, in one place
            with self.timer("advantages"):
                experience, report = crew.assemble(step, self.state, parts)
                self.state = report.state

            # 5. Update: critic and policy at the same time, on every rank the same number of passes
            with self.timer("update"):
                metrics = crew.update(experience, step)

            # 6. Publish: every engine proves the new version before it serves
            with self.timer("publish"):
                self.publish(version=step + 1, step=step)
        return self.record(step, report, metrics)

    def publish(self, version: int, step: int) -> None:
        """Send the policy's weights to the engines and have each prove that it holds them."""
        moment, engines = Moment(phase="publish", step=step), self.crew.engines
        engines.wake("weights", moment)
        sent = self.crew.policy.ask("publish", moment=moment)[0]
        engines.prove(sent, version, moment)
        engines.wake("kv_cache", moment)

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
