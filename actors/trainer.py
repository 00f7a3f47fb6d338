"""One PPO step. The controller holds prompts, seeds, references, metrics and a few sample texts, no response tokens."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

from actors.blocks import Block, StepPrompts, draw_step, generate_blocks
from actors.run_actors import RunActors
from actors.scoring import Scoring
from actors.waiting import PhaseContext
from rlhf.roles.assemble import BatchReport
from rlhf.run_state import RunState
from rlhf.tracking.spans import PhaseTimer


class PPOTrainer:
    """Runs one PPO step on the run's actors. ``ppo_loop.py`` runs many steps and recovers from failures."""

    def __init__(self, actors: RunActors, prompt_count: int) -> None:
        self.actors, self.recipe, self.prompt_count = actors, actors.recipe, prompt_count
        self.timer = PhaseTimer(spans=actors.supervisor.timeline.spans)
        self.between_phases: Callable[[], None] = lambda: None
        """Called between phases, to advance background work such as a checkpoint that is being written."""

    def step(
        self, state: RunState, pregenerated_blocks: Sequence[Block] = ()
    ) -> tuple[BatchReport, RunState, Sequence[Block]]:
        """Run one step; its rollouts are sampled from version ``state.step`` of the weights, or from the one before.

        ``pregenerated_blocks`` are rollouts of this step that were generated during the previous one
        (``ppo.staleness``). Returns the step's report, the state after it, and the next step's rollouts if they were
        generated meanwhile.
        """
        actors, step, set_aside = self.actors, state.step, state.set_aside
        with self.timer("step", step):
            # 1. Prompts: the next ones of a seeded order, repeated for each sample, and a sampling seed for each sample
            asked = draw_step(self.recipe, self.prompt_count, step, state.order)

            # 2. Rollout, and 3. Score: all scoring models process a block while the next one is still being generated
            scoring = Scoring(actors, PhaseContext(phase="score", step=step), len(asked.seeds))
            with self.phase("rollout", step) as context:
                for block in pregenerated_blocks or generate_blocks(actors.engines, asked, set_aside, context):
                    scoring.send(block)
                    set_aside += block.set_aside
                coming = self.begin_next(asked, set_aside)
            with self.phase("score", step) as context:
                actors.engines.sleep(context)
                scored = scoring.wait_for_results()

            # 4. Advantages: over the global batch, in one process
            with self.phase("advantages", step):
                experience, report = actors.assemble(step, state.algorithm, scored)

            # 5. Update: critic and policy, in parallel unless they share GPUs; in the warm-up only the critic
            with self.phase("update", step):
                metrics = actors.update(experience, step)

            # 6. Publish: rollouts by the old version are finished first; an engine serves once the new one is verified
            with self.phase("rollout", step):
                pregenerated_blocks = tuple(coming)
            with self.phase("publish", step) as context:
                actors.publish(step + 1, context)
        after = replace(state, step=step + 1, order=asked.after, algorithm=report.state, set_aside=set_aside)
        return self.add_metrics(step, report, metrics), after, pregenerated_blocks

    def begin_next(self, asked: StepPrompts, set_aside: int) -> Iterator[Block]:
        """Start generating the next step's rollouts while this step trains, if ``ppo.staleness`` is set."""
        step = asked.step + 1
        if not self.recipe.ppo.staleness or step == self.recipe.ppo.steps:
            return iter(())
        following = draw_step(self.recipe, self.prompt_count, step, asked.after)
        return generate_blocks(self.actors.engines, following, set_aside, PhaseContext(phase="rollout", step=step))

    @contextmanager
    def phase(self, name: str, step: int) -> Iterator[PhaseContext]:
        """Context of one phase: times it, and writes it to the status file."""
        self.between_phases()
        context = PhaseContext(phase=name, step=step)
        self.actors.supervisor.enter_phase(context)
        with self.timer(name, step):
            yield context

    def add_metrics(self, step: int, report: BatchReport, metrics: dict[str, float]) -> BatchReport:
        """7. Record: add the update's metrics, the phases' seconds and the throughput. ``TrainingLoop`` adds others."""
        times = self.timer.metrics()
        tokens = report.metrics["rollout/tokens"]
        trained = metrics.get("policy/tokens", self.recipe.algorithm.epochs * tokens)  # absent in critic warm-up
        rates = {
            "perf/train_tokens_per_second": trained / times["time/update"],
            "perf/samples_per_second": self.recipe.ppo.rollouts_per_step / times["time/step"],
            "weights/sync_seconds": times["time/publish"],
            "weights/version": float(step + 1),
            "episode": float((step + 1) * self.recipe.ppo.rollouts_per_step),
        }
        if not self.recipe.ppo.staleness:  # otherwise generation overlaps with the other phases
            rates["perf/rollout_tokens_per_second"] = tokens / times["time/rollout"]
        return report.with_metrics(metrics | times | rates)
