"""One PPO step. The controller holds prompts, seeds, references, metrics and a few sample texts, no response tokens."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from actors.blocks import Block, StepPrompts, draw_step, generate_blocks
from actors.run_actors import RunActors
from actors.scoring import ScoredBlocks, Scoring
from actors.waiting import PhaseContext
from rlhf.roles.assemble import BatchReport
from rlhf.run_state import RunState
from rlhf.step_rates import step_rates
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

        ``pregenerated_blocks`` were generated during the previous step (``ppo.staleness``). Returns the step's report,
        the state after it, and the next step's rollouts if they were generated meanwhile.
        """
        actors, step, order, set_aside = self.actors, state.step, state.order, state.set_aside
        with self.timer("step", step):
            rounds, is_full = list[ScoredBlocks](), False
            while not is_full:  # one round, or with DAPO's dynamic sampling several until the update is full
                # 1. Prompts: the next ones of a seeded order, repeated for each sample, and a seed for each sample
                asked = draw_step(self.recipe, self.prompt_count, step, order, len(rounds))

                # 2. Rollout, and 3. Score: all scoring models process a block while the next one is being generated
                scored, coming, set_aside = self.sample(asked, set_aside, pregenerated_blocks)
                order, rounds = asked.after, [*rounds, scored]

                # 4. Advantages: over the global batch, in one process
                with self.phase("advantages", step):
                    experience, report = actors.assemble(step, state.algorithm, rounds)
                is_full = report.is_full or len(rounds) == self.recipe.ppo.sampling_rounds

            # 5. Update: critic and policy, in parallel unless they share GPUs; in the warm-up only the critic
            with self.phase("update", step):
                metrics = actors.update(experience, step)

            # 6. Publish: rollouts by the old version are finished first; an engine serves once the new one is verified
            with self.phase("rollout", step):
                pregenerated_blocks = tuple(coming)
            with self.phase("publish", step) as context:
                actors.publish(step + 1, context)
        # 7. Record: the update's metrics, the phases' seconds and the throughput; ``TrainingLoop`` adds others
        after = state.after_step(order, report.state, set_aside, len(rounds))
        metrics |= self.timer.metrics()
        rates = step_rates(self.recipe, after, len(rounds), report.metrics | metrics)
        return report.with_metrics(metrics | rates), after, pregenerated_blocks

    def sample(
        self, asked: StepPrompts, set_aside: int, pregenerated_blocks: Sequence[Block]
    ) -> tuple[ScoredBlocks, Iterator[Block], int]:
        """Parts 2 and 3 of a step; returns also the next step's rollouts, and the quarantined samples so far."""
        actors, step = self.actors, asked.step
        if asked.round and actors.engines.sleeps:  # engines that sleep discard their weights
            with self.phase("publish", step) as context:
                actors.publish(step, context)
        scoring = Scoring(actors, PhaseContext(phase="score", step=step), len(asked.seeds))
        with self.phase("rollout", step) as context:
            for block in pregenerated_blocks or generate_blocks(actors.engines, asked, set_aside, context):
                scoring.send(block)
                set_aside += block.set_aside
            coming = self.begin_next(asked, set_aside)
        with self.phase("score", step) as context:
            actors.engines.sleep(context)
            return scoring.wait_for_results(), coming, set_aside

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
