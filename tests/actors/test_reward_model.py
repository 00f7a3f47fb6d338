"""Tests of the reward stage's metrics and normalisation on fixed answers of its ranks; end_to_end runs the stage."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from actors import reward_model
from actors.supervised import Summary
from actors.supervisor import Supervisor
from rlhf.config.schema import CheckpointConfig, PlacementConfig, Recipe, RewardConfig, RoleConfig, TrackingConfig
from rlhf.errors import MachineryError
from rlhf.roles.block_result import BlockResult
from rlhf.tracking.run_folder import RunFolder
from rlhf.tracking.tracker import Tracker
from rlhf.types import Example, Pair, Sequences

DEMONSTRATIONS = (1.0, 2.0, 6.0)
"""Their rewards: a mean of 3, a variance of 14/3."""


class Ranks:
    """Fake rank whose reward of a response is its first token; it records the arguments of ``save_shifted``."""

    role = "reward"

    def __init__(self) -> None:
        self.saved: dict[str, Any] = {}
        self.supervisor = Supervisor(Recipe(name="t"), lambda kind, **details: None)

    def ask(self, method: str, *arguments: Any, context: Any) -> list[Any]:
        return [getattr(self, method)(*arguments)]

    def set_data(self, train: Any) -> None:
        """Nothing is trained here."""

    def update(self, chosen: Any) -> dict[str, float]:
        return {"train/loss": 0.5}

    def rewards(self, sequences: Sequences) -> BlockResult:
        firsts = [float(sequences.response(i)[0]) for i in range(len(sequences))]
        return BlockResult(samples=np.arange(len(sequences)), values=np.array(firsts, dtype=np.float32))

    def save_shifted(self, folder: Path, shift: float) -> None:
        self.saved = {"shift": shift}
        (folder / "model.safetensors").touch()


class Console:
    """Shows nothing."""

    @contextmanager
    def stage(self, title: str, steps: int) -> Iterator[Any]:
        yield lambda step, shown: None

    def notice(self, text: str) -> None:
        pass


def array(*numbers: float) -> np.ndarray:
    return np.array(numbers, dtype=np.int32)


def pair(prompt: int, chosen: int, rejected: int) -> Pair:
    return Pair(prompt=array(9), chosen=array(chosen), rejected=array(rejected), margin=0.0, prompt_id=prompt)


def finished(folder: Path, monkeypatch: pytest.MonkeyPatch, ranks: Ranks) -> Summary:
    """The summary of a whole stage on these ranks."""

    @contextmanager
    def started(*arguments: Any) -> Iterator[Ranks]:
        yield ranks

    monkeypatch.setattr(reward_model, "running_group", started)
    monkeypatch.setattr(reward_model, "record_examinations", lambda *arguments: {})
    monkeypatch.setattr(reward_model, "ray", SimpleNamespace(put=lambda value: value))
    recipe = Recipe(
        name="t",
        reward=RewardConfig(batch_size=2),
        checkpoint=CheckpointConfig(snapshot_every=0),
        placement=PlacementConfig(reward=RoleConfig()),
        tracking=TrackingConfig(wandb="disabled"),
    )
    examples = tuple(
        Example(prompt=array(9), response=array(reward), mask=np.ones(1, np.bool_)) for reward in DEMONSTRATIONS
    )
    held_out = (pair(0, 5, 2), pair(0, 5, 3), pair(1, 4, 7), pair(1, 4, 8))  # all of a prompt alike: two observations
    comparisons = SimpleNamespace(train=(pair(0, 1, 2), pair(1, 2, 1)), held_out=held_out, files=())
    session: Any = SimpleNamespace(
        recipe=recipe,
        preferences=comparisons,
        judged=lambda stage: comparisons,
        demonstrations=SimpleNamespace(train=examples),
        report_data=lambda data, run: None,
        files_of=lambda stage: (),
        checkpoint=lambda stage: None,
        model_of=lambda *arguments: folder,
        base=folder,
        console=Console(),
        tokenizer=SimpleNamespace(save_pretrained=lambda folder: None),
        stop=None,
    )
    run = RunFolder.create(folder, "reward", "", "abc")
    return reward_model.train_reward(session, run, Tracker(run, recipe))


def test_the_saved_shift_makes_demonstrations_score_0(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ranks = Ranks()
    summary = finished(tmp_path, monkeypatch, ranks)
    assert ranks.saved["shift"] + np.mean(DEMONSTRATIONS) == 0
    assert summary["demonstrations' raw score (shifted to 0)"] == 3.0
    assert summary["demonstrations' standard deviation"] == pytest.approx((14 / 3) ** 0.5)


def test_held_out_pairs_of_one_prompt_are_one_observation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half right, of two prompts: t on one degree of freedom says next to nothing. Four pairs would say .15 to .85."""
    summary = finished(tmp_path, monkeypatch, Ranks())
    assert summary["held-out accuracy"] == 0.5
    assert float(summary["95% interval, from"]) < 0.05 and float(summary["95% interval, to"]) > 0.95


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_demonstrations_without_a_reward_shift_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bad: float
) -> None:
    """The shift would be NaN, and with it every reward of PPO."""
    ranks = Ranks()
    answer = ranks.rewards
    broken = BlockResult(samples=np.arange(3), values=np.array([1.0, bad, 6.0], dtype=np.float32))
    ranks.rewards = lambda sequences: broken if len(sequences) == 3 else answer(sequences)  # type: ignore[method-assign]
    with pytest.raises(MachineryError, match="in rewards of demonstrations: 1 of 3"):
        finished(tmp_path, monkeypatch, ranks)
    assert not ranks.saved
