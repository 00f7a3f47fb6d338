"""Tests of early stopping with a fake trainer and fixed scores; end_to_end tests the held-out scorer itself."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from actors.early_stop import EarlyStopping, PolicyAccess, describe_outcome, held_out_prompts, summarise_early_stop
from actors.supervised import Summary
from rlhf.config.schema import (
    EarlyStopConfig,
    EndpointConfig,
    PPOConfig,
    Recipe,
    RewardSourceConfig,
    TrackingConfig,
)
from rlhf.errors import MachineryError, UserError
from rlhf.roles.assemble import BatchReport
from rlhf.run_state import RunState
from rlhf.storage.jsonl import read_lines
from rlhf.tracking.run_folder import RunFolder
from rlhf.tracking.spans import PhaseTimer
from rlhf.tracking.tracker import Tracker
from rlhf.types import Prompt

SPREAD = np.linspace(-1.0, 1.0, 20)


class Scripted(EarlyStopping):
    """A ``EarlyStopping`` with a fixed mean score for each evaluation; NaN means no scores."""

    means: Sequence[float] = ()
    missing: Mapping[int, int] = {}
    unanswered: int = 0

    def _scores(self, done: int) -> tuple[np.ndarray, np.ndarray]:
        mean, self.means = self.means[0], self.means[1:]
        noise = np.random.default_rng(len(self.means)).normal(0.0, 0.01, size=20)
        scores = mean + SPREAD + noise - noise.mean()
        scores[: self.missing.get(len(self.means), 0)] = np.nan
        answered = np.arange(20) >= self.unanswered
        return np.where(answered, scores, np.nan), answered


class Watched:
    """A whole run under the watch, one evaluation per step; the policy saves, and answers with, its version."""

    def __init__(
        self,
        folder: Path,
        rewards: Sequence[float],
        means: Sequence[float],
        scorer: RewardSourceConfig = RewardSourceConfig(function="judge.py:score"),  # noqa: B008 (frozen)
    ) -> None:
        self.run = RunFolder.create(folder, "ppo", "", "abc")
        recipe = Recipe(name="x", tracking=TrackingConfig(wandb="disabled"), ppo=PPOConfig(steps=len(rewards)))
        policy = PolicyAccess(save=self._save, answers=lambda: [f"by version {self.state.step}"])
        actors: Any = SimpleNamespace(recipe=recipe)
        config = EarlyStopConfig(every=1, scorer=scorer)
        prompts, tracker = [Prompt(id=i, tokens=(i,)) for i in range(20)], Tracker(self.run, recipe)
        self.watcher = Scripted(config, actors, PhaseTimer(), range(20), prompts, policy, self.run, tracker)
        self.watcher.means, self.rewards, self.steps = means, rewards, len(rewards)
        self.state = RunState.start(recipe)

    def _save(self, folder: Path) -> None:
        (folder / "version").write_text(str(self.state.step))
        (folder / "model.safetensors").touch()

    def go(self) -> list[dict[str, float]]:
        """Each step's metrics, as long as the watch lets it go on."""
        rows = []
        self.state = replace(self.state, watch=self.watcher.begin())
        for reward in self.rewards:
            report = BatchReport(metrics={"objective/scores": reward}, samples=(), state=self.state.algorithm)
            self.state = replace(self.state, step=self.state.step + 1)
            seen, watch = self.watcher.after(self.state, report)
            # What a checkpoint keeps of it is all that there is.
            self.state = RunState.from_json(json.loads(json.dumps(replace(self.state, watch=watch).to_json())))
            rows.append({**report.metrics, **seen})
            if watch.stop:
                break
        return rows

    def finish(self) -> list[str]:
        answers = self.watcher.answers(self.state)
        self.watcher.save_final_model(self.state)
        return answers

    def describe_outcome(self) -> str:
        return describe_outcome(self.state, self.steps)

    def summary(self) -> Summary:
        return summarise_early_stop(self.state, self.steps)

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
    assert watched.finish() == ["by version 2"]
    assert watched.model() == "2"
    assert watched.describe_outcome() == (
        "PPO stopped early, after step 3 of 5: the held-out score fell from 2 (after step 2) to 1 while the reward "
        "rose from 1 to 2. The model is the policy after step 2."
    )
    summary = watched.summary()
    assert summary["the model is the policy after step"] == 2
    assert str(summary["stopped"]).startswith("early, after step 3 of 5")


def test_the_last_policy_is_kept_where_none_was_clearly_better(tmp_path: Path) -> None:
    watched = Watched(tmp_path, rewards=[0.0, 1.0], means=[0.0, 1.0, 0.9999])
    assert len(watched.go()) == 2
    assert (watched.run.best / "step_1" / "version").read_text() == "1"
    assert watched.finish() == ["by version 2"]
    assert watched.model() == "2"
    assert not watched.run.best.exists()
    assert watched.describe_outcome() == "PPO done. The model is the last policy: no earlier one scored clearly higher."
    assert watched.summary()["stopped"] == "after the last step"


def test_a_policy_that_got_worse_is_not_kept_even_if_its_reward_fell_too(tmp_path: Path) -> None:
    watched = Watched(tmp_path, rewards=[2.0, 1.0, 0.0], means=[0.0, 1.0, 0.5, 0.5])
    assert len(watched.go()) == 3
    assert watched.finish() == ["by version 1"]
    assert watched.model() == "1"
    assert "The model is the policy after step 1: its held-out score was 1, the last one's is 0.5." in (
        watched.describe_outcome()
    )
    events = read_lines(watched.run.events)
    assert [(event["step"], event["over_optimised"]) for event in events] == [(2, False), (3, False)]


SERVICE = RewardSourceConfig(endpoint=EndpointConfig(url="http://127.0.0.1/score", on_failure="drop"))


def test_a_held_out_scorer_that_is_away_is_passed_over(tmp_path: Path) -> None:
    nan = float("nan")
    watched = Watched(tmp_path, rewards=[0.0, 1.0, 2.0], means=[0.0, nan, 1.0, nan], scorer=SERVICE)
    steps = watched.go()
    assert [step.get("holdout/score") for step in steps] == [None, pytest.approx(1.0), None]
    assert [event["step"] for event in read_lines(watched.run.events)] == [1, 3]
    assert watched.state.watch is not None
    assert watched.state.watch.watch.last is not None
    assert watched.state.watch.watch.last.reward == 0.5, "of both steps since the evaluation before"
    assert watched.finish() == ["by version 3"], "nothing says that the last is lower"
    never = Watched(tmp_path / "never", rewards=[0.0], means=[nan, nan], scorer=SERVICE)
    never.go()
    assert never.finish() == ["by version 1"]
    assert "never gave a score" in never.describe_outcome()
    assert never.summary() == {"held-out scorer": "gave no score"}


def test_a_held_out_scorer_that_scores_a_few_answers_says_nothing_of_the_policy(tmp_path: Path) -> None:
    """On the one prompt that it scored the policy looks better; the best must not give way to that."""
    watched = Watched(tmp_path, rewards=[0.0, 1.0, 2.0], means=[0.0, 1.0, 5.0, 0.5], scorer=SERVICE)
    watched.watcher.missing = {1: 17}  # answers without a score, by how many evaluations are still to come
    steps = watched.go()
    assert [step.get("holdout/score") for step in steps] == [pytest.approx(1.0), None, pytest.approx(0.5)]
    assert steps[2]["holdout/best_step"] == 1
    event = read_lines(watched.run.events)[0]
    assert (event["given"], event["asked"]) == (3, 20)


def test_a_held_out_scorer_of_which_nothing_may_be_missing_stops_the_run_by_name(tmp_path: Path) -> None:
    watched = Watched(tmp_path, rewards=[0.0, 1.0], means=[0.0, 1.0, 2.0])
    watched.watcher.missing = {1: 1}
    with pytest.raises(MachineryError, match=r"NaN or infinite, in scores \(by the held-out scorer\): 1"):
        watched.go()


def test_a_held_out_scorer_need_not_score_what_was_not_answered(tmp_path: Path) -> None:
    watched = Watched(tmp_path, rewards=[0.0], means=[0.0, 1.0])
    watched.watcher.unanswered = 2
    [step] = watched.go()
    assert step["holdout/score"] == pytest.approx(1.0 + SPREAD[2:].mean(), abs=0.01)
    assert watched.summary()["held-out prompts scored"] == 18


def test_an_older_best_stays_until_a_checkpoint_knows_of_the_newer_one(tmp_path: Path) -> None:
    watched = Watched(tmp_path, rewards=[0.0, 1.0], means=[0.0, 1.0, 2.0])
    watched.go()
    assert sorted(folder.name for folder in watched.run.best.iterdir()) == ["step_0", "step_1", "step_2"]
    watched.run.prune_best(1)
    assert sorted(folder.name for folder in watched.run.best.iterdir()) == ["step_1", "step_2"]
    assert watched.finish() == ["by version 2"]
    assert sorted(file.name for file in watched.run.model.iterdir()) == ["model.safetensors", "version"]


def test_too_few_held_out_prompts_are_refused() -> None:
    prompts = [Prompt(id=i, tokens=(i,)) for i in range(5)]
    assert held_out_prompts(None, prompts) == ()
    assert held_out_prompts(EarlyStopConfig(scorer=SERVICE, prompts=3), prompts) == prompts[:3]
    with pytest.raises(UserError, match="1 different held-out prompts") as caught:
        held_out_prompts(EarlyStopConfig(scorer=SERVICE), prompts[:1])
    with pytest.raises(UserError, match="1 different held-out prompts"):
        held_out_prompts(EarlyStopConfig(scorer=SERVICE), [Prompt(id=i, tokens=(7,)) for i in range(5)])
    assert "data.held_out_fraction" in caught.value.fix


def test_a_prompt_that_is_evaluated_several_times_is_one_observation(tmp_path: Path) -> None:
    """Ten prompts twice: means of neighbours, -18/19, -14/19 ... 18/19, whose interval is Student's of ten numbers.

    s² = (2/19)² · 4 · 82.5/9, so ±t_9 s/√10 = ±2.262157 · .637375/3.162278 = ±.455953 without the wobble of .01.
    """
    watched = Watched(tmp_path, rewards=[0.0], means=[0.5, 0.5])
    watched.watcher.prompts = [(i // 2,) for i in range(20)]
    [step] = watched.go()
    assert step["holdout/start_score"] == pytest.approx(0.5)
    assert step["holdout/start_score_ci_high"] - 0.5 == pytest.approx(0.455953, abs=0.01)
    assert watched.summary()["held-out prompts scored"] == 10.0
