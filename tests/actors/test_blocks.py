"""Tests of a step's prompts and seeds, and of writing and reading blocks of rollouts."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from actors import blocks
from actors.blocks import draw_step, read_blocks, write_block
from rlhf.checkpoints.manifest import fault_of
from rlhf.config.schema import PPOConfig, Recipe
from rlhf.data.order import OrderState
from rlhf.types import FinishReason, RolloutBlock, Sequences

RECIPE = Recipe(name="x", seed=3, ppo=PPOConfig(batch_size=6, samples_per_prompt=2))
BLOCK = RolloutBlock(
    sequences=Sequences.pack([([1, 2], [3, 4, 5]), ([6], [])]),
    logprobs=np.array([-0.1, -np.inf, -3], np.float32),
    response_mask=np.array([True, False, True]),
    prompt_ids=np.array([7, 2**40]),
    weight_versions=np.array([4, 4]),
    finish_reasons=np.array([FinishReason.STOP, FinishReason.SET_ASIDE], np.int32),
    seeds=np.array([2**31 - 1, 0]),
    cached_tokens=np.array([1, 0], np.int32),
)


def test_steps_share_out_an_epoch_and_each_prompt_is_asked_as_often_as_it_is_to_be() -> None:
    first = draw_step(RECIPE, 6, 0, OrderState(0, 0))
    second = draw_step(RECIPE, 6, 1, first.after)
    assert sorted(first.prompts + second.prompts) == sorted(2 * list(range(6)))
    assert [first.prompts[i] for i in (0, 2, 4)] == [first.prompts[i] for i in (1, 3, 5)]
    assert len({*first.seeds, *second.seeds}) == 12


def test_a_step_may_ask_for_more_responses_than_it_trains_on() -> None:
    more = replace(RECIPE, ppo=replace(RECIPE.ppo, oversampling=2))
    asked = draw_step(more, 6, 0, OrderState(0, 0))
    assert sorted(asked.prompts) == sorted(2 * list(range(6))) and len(set(asked.seeds)) == 12


def test_a_further_round_asks_the_next_prompts_with_other_seeds() -> None:
    """Three prompts in all: the second round asks the same ones again, of which no seed may repeat."""
    rounds = replace(RECIPE, ppo=replace(RECIPE.ppo, sampling_rounds=2))
    first = draw_step(rounds, 3, 5, OrderState(0, 0), 0)
    second = draw_step(rounds, 3, 5, first.after, 1)
    assert sorted(first.prompts) == sorted(second.prompts)
    assert max(first.seeds) < 2**30 <= min(second.seeds) and max(second.seeds) < 2**31
    assert second == draw_step(rounds, 3, 5, first.after, 1)
    assert draw_step(RECIPE, 3, 6, second.after).prompts != second.prompts


def test_the_same_step_asks_the_same() -> None:
    order = draw_step(RECIPE, 6, 0, OrderState(0, 0)).after
    assert draw_step(RECIPE, 6, 1, order) == draw_step(RECIPE, 6, 1, order)


def test_blocks_come_back_as_they_were(tmp_path: Path) -> None:
    written = [write_block(BLOCK.select([index]), tmp_path, index, f"engine {index}") for index in (0, 1)]
    entries = [entry for each in written for entry in each]
    assert [entry.name for entry in entries] == ["rollouts/0.npz", "rollouts/1.npz"]
    assert [fault_of(entry, tmp_path) for entry in entries] == [None, None]
    described, *read = read_blocks([tmp_path / entry.name for entry in entries])
    assert described == [
        {"samples": 1, "set_aside": 0, "tokens": 5, "stream": "engine 0"},
        {"samples": 1, "set_aside": 1, "tokens": 1, "stream": "engine 1"},
    ]
    again = RolloutBlock.concatenate(read)
    for field in fields(RolloutBlock)[1:]:
        one, other = getattr(again, field.name), getattr(BLOCK, field.name)
        assert one.dtype == other.dtype
        np.testing.assert_array_equal(one, other)
    assert again.sequences.tokens.tolist() == [1, 2, 3, 4, 5, 6]
    assert again.sequences.response(0).tolist() == [3, 4, 5] and again.sequences.response(1).tolist() == []


def test_a_block_of_an_earlier_version_is_read(tmp_path: Path) -> None:
    """It names neither its stream nor the tokens that came from the cache."""
    [entry] = write_block(BLOCK, tmp_path, 0, "engine 0")
    arrays = dict(np.load(tmp_path / entry.name))
    np.savez(tmp_path / "old.npz", **{k: v for k, v in arrays.items() if k not in ("stream", "cached_tokens")})
    [described], block = read_blocks([tmp_path / "old.npz"])
    assert described == {"samples": 2, "set_aside": 1, "tokens": 6, "stream": ""}
    assert block.cached_tokens.tolist() == [0, 0]


class Draws:
    """A stream of seeds whose first draw gives all samples of a prompt one seed."""

    def __init__(self) -> None:
        self.drawn = 0

    def integers(self, high: int, size: int) -> np.ndarray:
        self.drawn += 1
        return np.zeros(size, dtype=np.int64) if self.drawn == 1 else np.arange(size)


def test_a_prompts_samples_never_have_one_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    """They would be one sample. Once in about two billion draws two are alike; then all are drawn again."""
    draws = Draws()
    monkeypatch.setattr(blocks, "np", SimpleNamespace(random=SimpleNamespace(default_rng=lambda seed: draws)))
    asked = draw_step(RECIPE, 6, 0, OrderState(0, 0))
    assert draws.drawn == 2 and list(asked.seeds) == [0, 1, 2, 3, 4, 5]
