"""Early stopping on over-optimisation: scores the policy on held-out prompts at intervals, and keeps the best one."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from math import ceil
from pathlib import Path

import numpy as np

from actors.blocks import make_block
from actors.run_actors import RunActors
from actors.scoring import Scoring
from actors.supervised import Summary
from actors.waiting import PhaseContext, fetch
from rlhf.config.schema import EarlyStopConfig
from rlhf.errors import NonFiniteError, UserError
from rlhf.evaluation.comparison import read_answers
from rlhf.evaluation.overoptimisation import HeldOutEvaluation, Watch, difference_interval, mean_by_prompt
from rlhf.placement.pools import HELD_OUT_SCORER
from rlhf.roles.assemble import BatchReport
from rlhf.roles.block_result import join_samples
from rlhf.run_state import RunState, WatchState
from rlhf.storage.durable import write_atomically
from rlhf.tracking.run_folder import RunFolder
from rlhf.tracking.spans import PhaseTimer
from rlhf.tracking.tracker import Tracker
from rlhf.types import Bool, Prompt

ANSWERS = "answers.json"
"""File in the best policy's folder with its answers for the comparison before and after PPO."""
LEAST_GIVEN = 0.9
"""Smallest fraction of held-out prompts with a score; below it, an evaluation has no effect on which policy is kept."""


def held_out_prompts(config: EarlyStopConfig | None, held_out: Sequence[Prompt]) -> Sequence[Prompt]:
    """Held-out prompts of ``early_stop``; none if it is not configured.

    Raises:
        UserError: they are too few to distinguish any difference from chance.
    """
    if config is None:
        return ()
    held_out = held_out[: config.prompts]
    different = len({prompt.tokens for prompt in held_out})
    if different < 2:
        raise UserError(
            f"early_stop has {different} different held-out prompts",
            "a fall of the score cannot be distinguished from chance with fewer than 2, and hardly with fewer than 50",
            "early_stop.prompts=100 with a larger data.held_out_fraction or more prompts",
        )
    return held_out


@dataclass(frozen=True, kw_only=True)
class PolicyAccess:
    """Access to the current policy: ``save`` writes it to a folder, ``answers`` answers the comparison's prompts."""

    save: Callable[[Path], None]
    answers: Callable[[], list[str]]


class EarlyStopping:
    """Evaluates the policy on held-out prompts before the first step, every ``every`` steps and after the last one.

    The policy with the best held-out score so far is saved; ``kept_step`` selects the run's model.
    """

    def __init__(
        self,
        config: EarlyStopConfig,
        actors: RunActors,
        timer: PhaseTimer,
        asked: Sequence[int],
        prompts: Sequence[Prompt],
        policy: PolicyAccess,
        run: RunFolder,
        tracker: Tracker,
    ) -> None:
        """Prepare the evaluations; ``begin`` runs the first.

        Args:
            asked: indices of the held-out prompts among the engines' prompts.
            prompts: the held-out prompts.
        """
        self.config, self.actors, self.timer, self.asked, self.policy = config, actors, timer, asked, policy
        self.prompts = [prompt.tokens for prompt in prompts]
        self.run, self.tracker = run, tracker
        self.steps = actors.recipe.ppo.steps
        endpoint = config.scorer.endpoint
        self._may_drop = endpoint is not None and endpoint.on_failure == "drop"

    def begin(self) -> WatchState:
        """Evaluate the policy before the first step."""
        watch = Watch(judgements=1 + ceil(self.steps / self.config.every), patience=self.config.patience)
        return self._evaluate(WatchState(watch=watch), 0, "start_score")

    def after(self, state: RunState, report: BatchReport) -> tuple[Mapping[str, float], WatchState]:
        """Evaluate the policy after a step if that is due; returns metrics to record with the step, and the state."""
        assert state.watch is not None
        rewards = [value for name, value in report.metrics.items() if name == "objective/scores"]
        watch, done = replace(state.watch, rewards=(*state.watch.rewards, *rewards)), state.step
        times: Mapping[str, float] = {}
        if done % self.config.every == 0 or done == self.steps:
            watch = self._evaluate(watch, done, "score")
            times = self.timer.metrics()
        return {**watch.unrecorded, **times}, replace(watch, unrecorded={})

    def _evaluate(self, state: WatchState, done: int, name: str) -> WatchState:
        """Evaluate the engines' policy after ``done`` steps; returns the state, with metrics yet to be recorded.

        Args:
            name: name of the score's metric, without the prefix ``holdout/``.
        """
        with self.timer("judge", done):
            scores, answered = self._scores(done)
        given = np.isfinite(scores)
        missing = int((answered & ~given).sum())
        if missing and not self._may_drop:
            raise NonFiniteError(f"numbers that are NaN or infinite, in scores (by the held-out scorer): {missing}")
        if given.mean() < LEAST_GIVEN:
            self.tracker.event("judgement_without_scores", step=done, given=int(given.sum()), asked=len(given))
            return state
        watch, decision = state.watch.evaluate(done, state.rewards, mean_by_prompt(scores, self.prompts).tolist())
        if decision.is_best:
            self._keep(done)
        if decision.is_lower:
            over = decision.is_over_optimised
            self.tracker.event("held_out_score_fell", step=done, over_optimised=over, why=decision.why)
        last, best = _last_and_best(watch)
        low, high = last.interval
        names = (f"holdout/{name}", f"holdout/{name}_ci_low", f"holdout/{name}_ci_high", "holdout/best_step")
        numbers = dict(zip(names, (last.mean, low, high, float(best.step)), strict=True))
        return replace(
            state,
            watch=watch,
            rewards=(),
            stop=decision.why if decision.stop else "",
            unrecorded={**state.unrecorded, **numbers},
        )

    def _scores(self, done: int) -> tuple[np.ndarray, Bool]:
        """Generate one answer to each held-out prompt and score it.

        The seed of an answer is its prompt's position, so that two evaluations differ only because of the policies.

        Returns:
            (n,) scores, NaN where missing; (n,) which prompts have an answer.

        Raises:
            MachineryError: more than ``recovery.bad_samples`` prompts of this evaluation have no answer.
        """
        context = PhaseContext(phase="judge", step=max(0, done - 1))  # the step that ends with it, or the first one
        actors, count = self.actors, len(self.asked)
        scorer, supervisor = actors.held_out_scorer, actors.supervisor
        assert scorer is not None
        supervisor.enter_phase(context)
        scoring = Scoring(actors, context, count, [actors.reward_scorer(HELD_OUT_SCORER, scorer, self.config.scorer)])
        blocks, answered = [], np.ones(count, dtype=np.bool_)
        for block, summary in actors.engines.generate(self.asked, range(count), context):
            scoring.send(make_block(block, summary))
            blocks.append(summary.positions)
            supervisor.set_aside(summary.faults, int((~answered).sum()), context)
            answered[list(summary.set_aside)] = False
        scores, scored = np.full(count, np.nan), scoring.wait_for_results()
        results = iter(scored.refs[len(blocks) :])
        for unit in scored.units:
            positions = [position for block in unit.blocks for position in blocks[block]]
            parts = [fetch(ref, scorer.names[0], context, supervisor.deadlines) for ref in islice(results, unit.parts)]
            scores[positions] = join_samples(parts, len(positions))
        return np.where(answered, scores * self.config.scorer.weight, np.nan), answered

    def _keep(self, done: int) -> None:
        """Save the policy as the best one, with its answers, which cannot be generated later."""
        with self.timer("judge", done), self.run.writing_best(done) as folder:
            self.policy.save(folder)
            write_atomically(folder / ANSWERS, json.dumps(self.policy.answers(), ensure_ascii=False))

    def answers(self, state: RunState) -> list[str]:
        """Answers of the policy that becomes the run's model, for the comparison.

        The best policy's were generated when it was saved, with the same seeds.
        """
        if not self._keeps_best(state):
            return self.policy.answers()
        fix = f"restore the file, or delete {self.run.path} to train the ppo stage again"
        return read_answers(self.run.best_of(kept_step(state)) / ANSWERS, fix)

    def save_final_model(self, state: RunState) -> None:
        """Save the best or the last policy as the run's model."""
        if self._keeps_best(state):
            self.run.keep_best(kept_step(state))
            (self.run.model / ANSWERS).unlink()
            return
        with self.run.writing_model() as folder:
            self.policy.save(folder)
        self.run.drop_best()

    def _keeps_best(self, state: RunState) -> bool:
        assert state.watch is not None
        best = state.watch.watch.best
        return best is not None and best.step == kept_step(state)


def _last_and_best(watch: Watch) -> tuple[HeldOutEvaluation, HeldOutEvaluation]:
    """Last and best held-out evaluation."""
    assert watch.last is not None and watch.best is not None
    return watch.last, watch.best


def kept_step(state: RunState) -> int:
    """Step of the policy that becomes the run's model.

    It is the best policy's step if the last one scores clearly lower, otherwise the last step.
    """
    assert state.watch is not None
    return _last_and_best(state.watch.watch)[1].step if state.watch.watch.keeps_best else state.step


def describe_outcome(state: RunState, steps: int) -> str:
    """Why the run ended, and which policy its model is, in one line."""
    assert state.watch is not None
    watch = state.watch.watch
    if watch.last is None:
        return "PPO done. The model is the last policy: the held-out scorer never gave a score."
    last, best = _last_and_best(watch)
    if state.watch.stop:
        ended = f"PPO stopped early, after step {state.step} of {steps}: {state.watch.stop}"
        return f"{ended}. The model is the policy after step {best.step}."
    if watch.keeps_best:
        scores = f"its held-out score was {best.mean:.4g}, the last one's is {last.mean:.4g}"
        return f"PPO done. The model is the policy after step {best.step}: {scores}."
    return "PPO done. The model is the last policy: no earlier one scored clearly higher."


def summarise_early_stop(state: RunState, steps: int) -> Summary:
    """Early stopping's entries of the stage's summary."""
    assert state.watch is not None
    if state.watch.watch.last is None:
        return {"held-out scorer": "gave no score"}
    last, best = _last_and_best(state.watch.watch)
    early = f"early, after step {state.step} of {steps}: {state.watch.stop}"
    return {
        "stopped": early if state.step < steps else "after the last step",
        "the model is the policy after step": float(kept_step(state)),
        "best held-out score": best.mean,
        "best held-out score, 95% interval": _between(best.interval),
        "best held-out score, after step": float(best.step),
        "last held-out score": last.mean,
        "last held-out score, 95% interval": _between(last.interval),
        "last against best, paired, 95% interval": _between(difference_interval(last, best), sign="+"),
        "held-out prompts scored": float(len(last.given)),
    }


def _between(interval: tuple[float, float], sign: str = "") -> str:
    return " to ".join(f"{end:{sign}.4g}" for end in interval)
