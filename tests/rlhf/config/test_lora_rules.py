"""Settings that do not work with adapters are refused before anything starts."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from rlhf.config.lora_rules import check_lora
from rlhf.config.schema import (
    DataConfig,
    LoRAConfig,
    ModelConfig,
    PlacementConfig,
    Recipe,
    RewardSourceConfig,
    RoleConfig,
    ScratchConfig,
    Stage,
)
from rlhf.errors import UserError
from rlhf.placement.machine import Machine
from rlhf.validate import validate


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
