"""The watch for over-optimisation: a run's policy is judged again and again, and the best so far is kept."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from math import ceil
from pathlib import Path

import numpy as np

from actors.supervised import Summary
from actors.trainer import PPOTrainer
from actors.waiting import Moment, wait
from rlhf.algorithms import canaries
from rlhf.config.schema import EarlyStopConfig
from rlhf.errors import MachineryError, UserError
from rlhf.evaluation.overoptimisation import Decision, Judgement, Watch, difference_interval
from rlhf.roles.assemble import BatchReport
from rlhf.roles.forward import Share, join_samples
from rlhf.tracking.run_folder import RunFolder
from rlhf.tracking.tracker import Tracker
from rlhf.types import Prompt, RolloutBlock

LEAST_GIVEN = 0.9
"""Share of the answers that a judge must have scored: a judgement of a few of them could replace the best policy."""


def judged_prompts(config: EarlyStopConfig | None, held_out: Sequence[Prompt]) -> Sequence[Prompt]:
    """The held-out prompts whose answers are judged; none without a watch.

    Raises:
        UserError: there are too few to tell any difference from chance.
    """
    if config is None:
        return ()
    if min(config.prompts, len(held_out)) < 2:
        raise UserError(
            f"early_stop has {min(config.prompts, len(held_out))} held-out prompts to judge answers to",
            "a fall of the score cannot be told from chance with fewer than 2, and hardly with fewer than 50",
            "early_stop.prompts=100 with a larger data.held_out_fraction or more prompts",
        )
    return held_out[: config.prompts]


@dataclass(frozen=True, kw_only=True)
class Policy:
    """What can be had of the policy as it is now: ``save`` it to a folder, and its ``answers`` for the comparison."""

    save: Callable[[Path], None]
    answers: Callable[[], list[str]]


class Watcher:
    """Judges the policy before the first step, every so often, and after the last; keeps the best by that judge."""

    def __init__(
        self,
        config: EarlyStopConfig,
        trainer: PPOTrainer,
        asked: Sequence[int],
        policy: Policy,
        run: RunFolder,
        tracker: Tracker,
    ) -> None:
        """Args: trainer has published its first weights; asked are the engines' prompts whose answers are judged."""
        self.config, self.trainer, self.asked, self.policy = config, trainer, asked, policy
        self.run, self.tracker = run, tracker
        self.steps, self.done = trainer.recipe.ppo.steps, 0
        self.watch = Watch(judgements=1 + ceil(self.steps / config.every), patience=config.patience)
        self.decision: Decision | None = None
        self.best_answers: list[str] = []
        self._rewards: list[float] = []
        endpoint = config.scorer.endpoint
        self._may_drop = endpoint is not None and endpoint.on_failure == "drop"

    def run_steps(self) -> Iterator[tuple[int, BatchReport]]:
        """The trainer's steps, with what was judged among their metrics; no more once the policy is over-optimised."""
        judged = self._judge("start_score")
        for step, report in self.trainer.run():
            self.done = step + 1
            self._rewards += [value for name, value in report.metrics.items() if name == "objective/scores"]
            if self.done % self.config.every == 0 or self.done == self.steps:
                judged |= self._judge("score") | self.trainer.timer.metrics()
            yield step, report.with_metrics(judged)
            judged = {}
            if self.stopped:
                # The trainer checks them when it is asked for its next step, which it is not.
                canaries.check(report.metrics, step, self.trainer.limits)
                return

    @property
    def stopped(self) -> bool:
        """Whether the last judgement ended the run."""
        return self.decision is not None and self.decision.stop

    def _judge(self, name: str) -> dict[str, float]:
        """Judge the policy that the engines hold; returns the score, its interval and the best step, for the record."""
        with self.trainer.timer("judge"):
            scores = self._scores()
        given = np.isfinite(scores)
        if not given.all() and not self._may_drop:
            raise MachineryError(f"numbers that are NaN or infinite, in scores (by the judge): {int((~given).sum())}")
        if given.mean() < LEAST_GIVEN:
            self.tracker.event("judgement_without_scores", step=self.done, given=int(given.sum()), asked=len(given))
            return {}
        self.watch, self.decision = self.watch.judge(self.done, self._rewards, scores.tolist())
        self._rewards = []
        if self.decision.is_best:
            self._keep()
        if self.decision.is_lower:
            over = self.decision.is_over_optimised
            self.tracker.event("held_out_score_fell", step=self.done, over_optimised=over, why=self.decision.why)
        last, best = self._judgements
        low, high = last.interval
        names = (f"holdout/{name}", f"holdout/{name}_ci_low", f"holdout/{name}_ci_high", "holdout/best_step")
        return dict(zip(names, (last.mean, low, high, float(best.step)), strict=True))

    def _scores(self) -> np.ndarray:
        """(n,) the judge's scores of one answer to each prompt, NaN where it gave none.

        The seed of an answer is its prompt's place, so that two judgements differ by the policies alone.
        """
        crew, moment = self.trainer.crew, Moment(phase="judge", step=self.done)
        assert crew.judge is not None
        first, name = crew.judge.workers[0], crew.judge.names[0]
        pending = [
            first.run.remote(by_seed, block, *crew.judge.call("scores", block))
            for block in crew.engines.generate(self.asked, range(len(self.asked)), moment)
        ]
        scores = np.full(len(self.asked), np.nan)
        seconds = self.trainer.recipe.placement.phase_timeout_seconds
        for found in wait(pending, [name] * len(pending), moment, seconds):
            scores[list(found)] = list(found.values())
        return scores * self.config.scorer.weight

    def _keep(self) -> None:
        """Save the policy in place of the best before it, with its answers: they cannot be had of it later."""
        with self.trainer.timer("judge"):
            with self.run.writing_best(self.done) as folder:
                self.policy.save(folder)
            self.best_answers = self.policy.answers()

    @property
    def _judgements(self) -> tuple[Judgement, Judgement]:
        """The last and the best."""
        assert self.watch.last is not None and self.watch.best is not None
        return self.watch.last, self.watch.best

    @property
    def kept_step(self) -> int:
        """Steps behind the policy that becomes the run's model: the best's if the last is lower, else the last's."""
        return self._judgements[1].step if self.watch.keeps_best else self.done

    def finish(self) -> list[str]:
        """Leave the run its model; returns that policy's answers for the comparison.

        The best's are those of when it was judged, by the same seeds.
        """
        if self.watch.best is not None and self.watch.best.step == self.kept_step:
            self.run.keep_best(self.kept_step)
            return self.best_answers
        answers = self.policy.answers()
        with self.run.writing_model() as folder:
            self.policy.save(folder)
        self.run.drop_best()
        return answers

    def outcome(self) -> str:
        """Why the run ended, and which policy its model is, in one line."""
        if self.decision is None:
            return "PPO done. The model is the last policy: the held-out judge never gave a score."
        last, best = self._judgements
        if self.done < self.steps:
            ended = f"PPO stopped early, after step {self.done} of {self.steps}: {self.decision.why}"
            return f"{ended}. The model is the policy after step {best.step}."
        if self.watch.keeps_best:
            scores = f"its held-out score was {best.mean:.4g}, the last one's is {last.mean:.4g}"
            return f"PPO done. The model is the policy after step {best.step}: {scores}."
        return "PPO done. The model is the last policy: none before it was judged clearly higher."

    def summary(self) -> Summary:
        """What the stage's summary says of it."""
        if self.decision is None:
            return {"held-out judge": "gave no score"}
        (last, best), stopped = self._judgements, f"early, after step {self.done} of {self.steps}: {self.decision.why}"
        return {
            "stopped": stopped if self.done < self.steps else "after the last step",
            "the model is the policy after step": float(self.kept_step),
            "best held-out score": best.mean,
            "best held-out score, 95% interval": _between(best.interval),
            "best held-out score, after step": float(best.step),
            "last held-out score": last.mean,
            "last held-out score, 95% interval": _between(last.interval),
            "last against best, paired, 95% interval": _between(difference_interval(last, best), sign="+"),
            "held-out prompts judged": float(len(last.given)),
        }


def by_seed(block: RolloutBlock, *shares: Share) -> dict[int, float]:
    """The scores of a block, in shares of the judge's ranks, by the seed of each answer."""
    scores = join_samples(shares, len(block))
    return dict(zip(block.seeds.tolist(), scores.tolist(), strict=True))


def _between(interval: tuple[float, float], sign: str = "") -> str:
    return " to ".join(f"{end:{sign}.4g}" for end in interval)
