"""Settings that do not work with adapters are refused before anything starts."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from rlhf.config.lora_rules import LARGEST_RANK, check_lora
from rlhf.config.schema import (
    DataConfig,
    LoRAConfig,
    ModelConfig,
    PlacementConfig,
    Recipe,
    RewardSourceConfig,
    RoleConfig,
    RolloutConfig,
    ScratchConfig,
    Stage,
)
from rlhf.errors import UserError
from rlhf.placement.machine import Machine, check_devices
from rlhf.validate import validate
from rlhf.weights.adapter import RANKS


def recipe(folder: Path, **roles: RoleConfig) -> Recipe:
    """Adapters on a quantised base of a randomly initialised model."""
    (folder / "rows.jsonl").touch()
    return Recipe(
        name="a",
        model=ModelConfig(scratch=ScratchConfig(hidden_size=64, heads=2), lora=LoRAConfig(quantization="nf4")),
        data=DataConfig(path=str(folder / "rows.jsonl")),
        rewards={"service": RewardSourceConfig(function="a.py:b")},
        placement=PlacementConfig(**roles),
    )


SPLIT = RoleConfig(ranks=2, tensor_parallel=2)


@pytest.mark.parametrize("stage", ["reward", "pipeline"])
def test_adapters_of_a_reward_model_do_not_go_with_shared_matrices(stage: Stage, tmp_path: Path) -> None:
    split = replace(recipe(tmp_path, reward=SPLIT), rewards={"model": RewardSourceConfig(model="trained")})
    with pytest.raises(UserError, match="placement.reward.tensor_parallel = 2 and model.lora.quantization") as error:
        validate(split, stage, Machine(gpus=0, cpus=8))
    assert "placement.reward.tensor_parallel=1" in str(error.value)


@pytest.mark.parametrize("lora", [None, LoRAConfig()])
def test_a_reward_model_without_adapters_may_be_split(lora: Any, tmp_path: Path) -> None:
    split = recipe(tmp_path, reward=SPLIT)
    assert list(check_lora(split, ["ppo"])) == []  # frozen there
    plain = replace(split, model=replace(split.model, lora=lora))
    assert list(check_lora(plain, ["sft", "reward", "ppo"])) == []


def adapted(folder: Path, rollout: RolloutConfig, **lora: Any) -> Recipe:
    """Engines load the adapter."""
    base = recipe(folder)
    return replace(base, model=replace(base.model, lora=LoRAConfig(publish="adapter", **lora)), rollout=rollout)


@pytest.mark.parametrize(
    ("rollout", "rank", "says"),
    [
        (RolloutConfig(), 513, "model.lora.publish = adapter and model.lora.rank = 513"),
        (RolloutConfig(tensor_parallel=2), 4, "model.lora.publish = adapter and rollout.tensor_parallel = 2"),
    ],
)
def test_adapters_that_engines_cannot_serve_are_refused(
    rollout: RolloutConfig, rank: int, says: str, tmp_path: Path
) -> None:
    [problem] = check_lora(adapted(tmp_path, rollout, rank=rank), ["ppo"])
    assert says in str(problem) and "model.lora.publish=merged" in str(problem)
    assert list(check_lora(adapted(tmp_path, rollout, rank=rank), ["sft", "dpo"])) == []


def test_adapters_that_engines_can_serve_pass(tmp_path: Path) -> None:
    assert max(RANKS) == LARGEST_RANK
    assert list(check_lora(adapted(tmp_path, RolloutConfig(), rank=512), ["ppo"])) == []


def test_engines_that_sleep_get_merged_weights(tmp_path: Path) -> None:
    base = adapted(tmp_path, RolloutConfig())
    shared = replace(base, placement=replace(base.placement, strategy="colocated"))
    gpus = Machine(gpus=1, cpus=8)
    assert "model.lora.publish = adapter with" in "".join(map(str, check_devices(shared, "ppo", gpus)))
    merged = replace(shared, model=replace(base.model, lora=LoRAConfig()))
    assert "model.lora" not in "".join(map(str, check_devices(merged, "ppo", gpus)))
