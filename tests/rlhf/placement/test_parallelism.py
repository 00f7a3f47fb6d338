"""What it asks of a recipe that ranks share rows or matrices."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from rlhf.config.schema import (
    DataConfig,
    LoRAConfig,
    ModelConfig,
    PlacementConfig,
    Recipe,
    RoleConfig,
    ScratchConfig,
    Stage,
)
from rlhf.errors import UserError
from rlhf.placement.machine import Machine
from rlhf.validate import validate


def refused(recipe: Recipe, stage: Stage) -> str:
    with pytest.raises(UserError) as error:
        validate(recipe, stage, Machine(gpus=0, cpus=8))
    return str(error.value)


@pytest.fixture
def recipe(tmp_path: Path) -> Recipe:
    """Two ranks of the policy share each row, of a model of two heads."""
    (tmp_path / "rows.jsonl").touch()
    return Recipe(
        name="a",
        model=ModelConfig(scratch=ScratchConfig(hidden_size=64, heads=2)),
        data=DataConfig(path=str(tmp_path / "rows.jsonl")),
        placement=PlacementConfig(policy=RoleConfig(ranks=2, sequence_parallel=2)),
    )


def with_role(recipe: Recipe, name: str, role: RoleConfig) -> Recipe:
    return replace(recipe, placement=replace(recipe.placement, **{name: role}))


@pytest.mark.parametrize("stage", ["sft", "dpo", "ppo", "reward"])
def test_a_good_recipe_passes(recipe: Recipe, stage: Stage) -> None:
    validate(recipe, stage, Machine(gpus=0, cpus=8))


def test_ranks_are_groups_of_neighbours(recipe: Recipe) -> None:
    odd = with_role(recipe, "policy", RoleConfig(ranks=3, sequence_parallel=2))
    message = refused(odd, "sft")
    assert "placement.policy.ranks = 3 is not divisible by placement.policy.sequence_parallel = 2" in message
    assert "placement.policy.ranks=4" in message


def test_only_roles_that_compute_are_looked_at(recipe: Recipe) -> None:
    odd = with_role(recipe, "critic", RoleConfig(ranks=3, sequence_parallel=2))
    validate(odd, "sft", Machine(gpus=0, cpus=8))
    assert "placement.critic.ranks = 3" in refused(odd, "ppo")


def test_heads_are_dealt_to_ranks(recipe: Recipe) -> None:
    four = with_role(recipe, "policy", RoleConfig(ranks=4, sequence_parallel=4))
    message = refused(four, "sft")
    assert "placement.policy.sequence_parallel = 4 and model.scratch has 2 heads" in message
    assert "placement.policy.sequence_parallel=2; possible are 1, 2" in message


def test_batches_are_dealt_to_groups(recipe: Recipe) -> None:
    """Six samples divide over two groups of two ranks, not over four ranks."""
    small = replace(recipe, sft=replace(recipe.sft, batch_size=6))
    validate(with_role(small, "policy", RoleConfig(ranks=4, sequence_parallel=2)), "sft", Machine(gpus=0, cpus=8))
    assert "sft.batch_size = 6 is not divisible by placement.policy.ranks = 4" in refused(
        with_role(small, "policy", RoleConfig(ranks=4)), "sft"
    )
    six = with_role(
        replace(recipe, sft=replace(recipe.sft, batch_size=4)), "policy", RoleConfig(ranks=6, sequence_parallel=2)
    )
    assert "placement.policy.ranks / placement.policy.sequence_parallel = 3" in refused(six, "sft")


def test_matrices_are_shared_too(recipe: Recipe) -> None:
    for stage in (1, 2):
        fits = with_role(recipe, "policy", RoleConfig(ranks=4, tensor_parallel=2, zero_stage=stage))  # type: ignore[arg-type]
        validate(fits, "sft", Machine(gpus=0, cpus=8))


@pytest.mark.parametrize(
    ("role", "says"),
    [
        ({"ranks": 3, "tensor_parallel": 2}, "ranks = 3 is not divisible by placement.policy.tensor_parallel = 2"),
        ({"ranks": 4, "tensor_parallel": 4}, "tensor_parallel = 4 and model.scratch has 2 heads"),
        ({"ranks": 2, "tensor_parallel": 2, "zero_stage": 3}, "and placement.policy.zero_stage = 3"),
        ({"ranks": 2, "tensor_parallel": 2, "zero_stage": 0}, "and placement.policy.zero_stage = 0"),
        ({"ranks": 4, "tensor_parallel": 2, "sequence_parallel": 2}, "and placement.policy.sequence_parallel = 2"),
        ({"ranks": 2, "tensor_parallel": 2, "offload": True}, "and placement.policy.offload = true"),
    ],
)
def test_what_does_not_go_with_shared_matrices_is_refused(recipe: Recipe, role: dict[str, Any], says: str) -> None:
    assert says in refused(with_role(recipe, "policy", RoleConfig(**role)), "sft")


def test_adapters_do_not_go_with_shared_matrices(recipe: Recipe) -> None:
    adapted = replace(recipe, model=replace(recipe.model, lora=LoRAConfig()))
    split = with_role(adapted, "policy", RoleConfig(ranks=2, tensor_parallel=2))
    assert "placement.policy.tensor_parallel = 2 and model.lora" in refused(split, "sft")


def test_a_feed_forward_block_is_divided(recipe: Recipe) -> None:
    odd = replace(recipe, model=ModelConfig(scratch=ScratchConfig(hidden_size=64, heads=2, intermediate_size=97)))
    message = refused(with_role(odd, "policy", RoleConfig(ranks=2, tensor_parallel=2)), "sft")
    assert "feed-forward blocks 97 wide" in message and "placement.policy.tensor_parallel=1" in message
