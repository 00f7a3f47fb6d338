"""What the watch does with a run, on a trainer and scores that are written down here; judging itself is end to end."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from actors.watch import Policy, Watcher, by_seed, judged_prompts
from rlhf.algorithms import canaries
from rlhf.algorithms.controller import AlgorithmState
from rlhf.config.schema import (
    CanaryConfig,
    EarlyStopConfig,
    EndpointConfig,
    PPOConfig,
    Recipe,
    RewardSourceConfig,
    TrackingConfig,
)
from rlhf.errors import CanaryError, MachineryError, UserError
from rlhf.roles.assemble import BatchReport
from rlhf.roles.forward import Share
from rlhf.tracking.jsonl import read_lines
from rlhf.tracking.phases import PhaseTimer
from rlhf.tracking.run_folder import RunFolder
from rlhf.tracking.tracker import Tracker
from rlhf.types import FinishReason, Prompt, Rollout, RolloutBlock

SPREAD = np.linspace(-1.0, 1.0, 20)


class Trainer:
    """As many steps as there are rewards; the KL of a step is its number, so that a cap on it can be passed."""

    def __init__(self, rewards: Sequence[float], max_kl: float | None) -> None:
        self.recipe = Recipe(name="x", ppo=PPOConfig(steps=len(rewards)))
        self.timer, self.rewards = PhaseTimer(), rewards
        self.limits = canaries.Limits.of(CanaryConfig(max_kl=max_kl), "float32")

    def run(self) -> Iterator[tuple[int, BatchReport]]:
        for step, reward in enumerate(self.rewards):
            metrics = {"objective/scores": reward, "objective/kl": float(step)}
            report = BatchReport(metrics=metrics, samples=(), state=AlgorithmState.start(self.recipe.algorithm))
            yield step, report
            canaries.check(report.metrics, step, self.limits)


class Scripted(Watcher):
    """A watch whose judge says what is written down, a mean for each judgement; NaN stands for no score at all."""

    means: Sequence[float] = ()
    missing: Mapping[int, int] = {}

    def _scores(self) -> np.ndarray:
        mean, self.means = self.means[0], self.means[1:]
        noise = np.random.default_rng(len(self.means)).normal(0.0, 0.01, size=20)
        scores = mean + SPREAD + noise - noise.mean()
        scores[: self.missing.get(len(self.means), 0)] = np.nan
        return scores


class Watched:
    """A whole run under the watch, one judgement a step; the policy saves, and answers with, its version."""

    def __init__(
        self,
        folder: Path,
        rewards: Sequence[float],
        means: Sequence[float],
        max_kl: float | None = None,
        scorer: RewardSourceConfig = RewardSourceConfig(function="judge.py:score"),  # noqa: B008 (frozen)
    ) -> None:
        self.run = RunFolder.create(folder, "ppo", "", "abc")
        recipe = Recipe(name="x", tracking=TrackingConfig(wandb="disabled"))
        policy = Policy(save=self._save, answers=lambda: [f"by version {self.watcher.done}"])
        trainer: Any = Trainer(rewards, max_kl)
        tracker = Tracker(self.run, recipe)
        config = EarlyStopConfig(every=1, scorer=scorer)
        self.watcher = Scripted(config, trainer, range(20), policy, self.run, tracker)
        self.watcher.means = means

    def _save(self, folder: Path) -> None:
        (folder / "version").write_text(str(self.watcher.done))

    def go(self) -> list[dict[str, float]]:
        return [report.metrics for _, report in self.watcher.run_steps()]

    def model(self) -> str:
        return (self.run.model / "version").read_text()


def test_a_stopped_run_ends_with_the_best_policy_and_its_answers(tmp_path: Path) -> None:
    watched = Watched(tmp_path, rewards=[0.0, 1.0, 2.0, 3.0, 4.0], means=[0.0, 1.0, 2.0, 1.0])
    steps = watched.go()
    assert len(steps) == 3
    assert steps[0]["holdout/start_score"] == pytest.approx(0.0, abs=1e-9)
    assert [step["holdout/score"] for step in steps] == pytest.approx([1.0, 2.0, 1.0])
    assert [step["holdout/best_step"] for step in steps] == [1, 2, 2]
    assert all("time/judge" in step for step in steps)
    assert watched.watcher.finish() == ["by version 2"]
    assert watched.model() == "2"
    assert watched.watcher.outcome() == (
        "PPO stopped early, after step 3 of 5: the held-out score fell from 2 (after step 2) to 1 while the reward "
        "rose from 1 to 2. The model is the policy after step 2."
    )
    summary = watched.watcher.summary()
    assert summary["the model is the policy after step"] == 2
    assert str(summary["stopped"]).startswith("early, after step 3 of 5")


def test_the_last_policy_is_kept_where_none_was_clearly_better(tmp_path: Path) -> None:
    watched = Watched(tmp_path, rewards=[0.0, 1.0], means=[0.0, 1.0, 0.9999])
    assert len(watched.go()) == 2
    assert (watched.run.best / "step_1" / "version").read_text() == "1"
    assert watched.watcher.finish() == ["by version 2"]
    assert watched.model() == "2"
    assert not watched.run.best.exists()
    assert (
        watched.watcher.outcome() == "PPO done. The model is the last policy: none before it was judged clearly higher."
    )
    assert watched.watcher.summary()["stopped"] == "after the last step"


def test_a_policy_that_got_worse_is_not_kept_even_if_its_reward_fell_too(tmp_path: Path) -> None:
    watched = Watched(tmp_path, rewards=[2.0, 1.0, 0.0], means=[0.0, 1.0, 0.5, 0.5])
    assert len(watched.go()) == 3
    assert watched.watcher.finish() == ["by version 1"]
    assert watched.model() == "1"
    assert "The model is the policy after step 1: its held-out score was 1, the last one's is 0.5." in (
        watched.watcher.outcome()
    )
    events = read_lines(watched.run.events)
    assert [(event["step"], event["over_optimised"]) for event in events] == [(2, False), (3, False)]


SERVICE = RewardSourceConfig(endpoint=EndpointConfig(url="http://127.0.0.1/score", on_failure="drop"))


def test_a_judge_that_is_away_is_passed_over(tmp_path: Path) -> None:
    nan = float("nan")
    watched = Watched(tmp_path, rewards=[0.0, 1.0, 2.0], means=[0.0, nan, 1.0, nan], scorer=SERVICE)
    steps = watched.go()
    assert [step.get("holdout/score") for step in steps] == [None, pytest.approx(1.0), None]
    assert [event["step"] for event in read_lines(watched.run.events)] == [1, 3]
    assert watched.watcher.watch.last is not None
    assert watched.watcher.watch.last.reward == 0.5, "of both steps since the judgement before"
    assert watched.watcher.finish() == ["by version 3"], "nothing says that the last is lower"
    never = Watched(tmp_path / "never", rewards=[0.0], means=[nan, nan], scorer=SERVICE)
    never.go()
    assert never.watcher.finish() == ["by version 1"]
    assert "never gave a score" in never.watcher.outcome()
    assert never.watcher.summary() == {"held-out judge": "gave no score"}


def test_a_judge_that_scores_a_few_answers_says_nothing_of_the_policy(tmp_path: Path) -> None:
    """On the one prompt that it scored the policy looks better; the best must not give way to that."""
    watched = Watched(tmp_path, rewards=[0.0, 1.0, 2.0], means=[0.0, 1.0, 5.0, 0.5], scorer=SERVICE)
    watched.watcher.missing = {1: 17}  # answers without a score, by how many judgements are still to come
    steps = watched.go()
    assert [step.get("holdout/score") for step in steps] == [pytest.approx(1.0), None, pytest.approx(0.5)]
    assert steps[2]["holdout/best_step"] == 1
    event = read_lines(watched.run.events)[0]
    assert (event["given"], event["asked"]) == (3, 20)


def test_a_judge_of_which_nothing_may_be_missing_stops_the_run_by_name(tmp_path: Path) -> None:
    watched = Watched(tmp_path, rewards=[0.0, 1.0], means=[0.0, 1.0, 2.0])
    watched.watcher.missing = {1: 1}
    with pytest.raises(MachineryError, match=r"NaN or infinite, in scores \(by the judge\): 1"):
        watched.go()


def test_the_canaries_of_the_step_that_stops_the_run_are_checked(tmp_path: Path) -> None:
    """As in a run that goes on, its metrics are handed out first."""
    watched = Watched(tmp_path, rewards=[0.0, 1.0, 2.0, 3.0], means=[0.0, 1.0, 0.0], max_kl=0.5)
    steps = watched.watcher.run_steps()
    assert [next(steps)[0], next(steps)[0]] == [0, 1]
    assert watched.watcher.stopped
    with pytest.raises(CanaryError, match="objective/kl = 1 at step 1"):
        next(steps)


def test_scores_find_their_prompts_by_seed() -> None:
    rollouts = [
        Rollout(
            prompt=Prompt(id=70 + seed, tokens=(1,)),
            tokens=np.array([2], np.int32),
            logprobs=np.zeros(1, np.float32),
            mask=np.ones(1, bool),
            weight_version=0,
            finish_reason=FinishReason.LENGTH,
            seed=seed,
        )
        for seed in (5, 3, 4)
    ]
    first = Share(samples=np.array([2]), values=np.array([0.4], np.float32))
    second = Share(samples=np.array([0, 1]), values=np.array([0.5, 0.3], np.float32))
    assert by_seed(RolloutBlock.pack(rollouts), first, second) == pytest.approx({3: 0.3, 4: 0.4, 5: 0.5})


def test_too_few_held_out_prompts_are_refused() -> None:
    prompts = [Prompt(id=i, tokens=(1,)) for i in range(5)]
    assert judged_prompts(None, prompts) == ()
    assert judged_prompts(EarlyStopConfig(prompts=3), prompts) == prompts[:3]
    with pytest.raises(UserError, match="1 held-out prompts") as caught:
        judged_prompts(EarlyStopConfig(), prompts[:1])
    assert "data.held_out_fraction" in caught.value.fix
