"""Tests of what a recipe is advised to change when a role runs out of memory: each change is taken in turn."""

from __future__ import annotations

from pathlib import Path

import pytest

from rlhf.config.load import load_recipe
from rlhf.recovery.memory_advice import advise_on_memory


def advice(folder: Path, role: str, on_gpu: bool, *overrides: str) -> list[str]:
    """The keys and values that are advised one after another, each time with all earlier ones in the recipe."""
    (file := folder / "recipe.yaml").write_text("name: x\n")
    taken, found = list(overrides), list[str]()
    for _ in range(6):
        line = advise_on_memory(load_recipe(file, taken), role, on_gpu)
        change, _, present = line.partition(" ")
        assert present.startswith("(it is "), "the present value is told"
        found.append(change)
        taken.append(change)
    return found


def test_a_trained_network_gets_smaller_rows_first_and_more_ranks_at_last(tmp_path: Path) -> None:
    found = advice(tmp_path, "policy", True, "placement.policy.micro_batch_tokens=2000", "placement.policy.ranks=2")
    assert found == [
        "placement.policy.micro_batch_tokens=1000",
        "placement.policy.micro_batch_tokens=512",  # the longest sequence: 256 and 256
        "model.gradient_checkpointing=true",
        "placement.policy.zero_stage=3",
        "placement.policy.offload=true",
        "placement.policy.ranks=4",
    ]


def test_one_rank_shards_nothing_and_the_host_offloads_nothing(tmp_path: Path) -> None:
    found = advice(tmp_path, "critic", False, "placement.critic.micro_batch_tokens=512")
    assert found[:3] == [
        "model.gradient_checkpointing=true",
        "placement.critic.ranks=2",
        "placement.critic.zero_stage=3",
    ]


@pytest.mark.parametrize("role", ["reward helpful", "judge", "reward"])
def test_rewards_and_the_held_out_scorer_have_one_placement(role: str, tmp_path: Path) -> None:
    assert advice(tmp_path, role, True)[0] == "placement.reward.micro_batch_tokens=2048"


def test_a_frozen_network_has_no_activations_to_recompute(tmp_path: Path) -> None:
    found = advice(tmp_path, "reference", True, "placement.reference.micro_batch_tokens=512")
    assert found[0] == "placement.reference.ranks=2"


def test_an_engine_leaves_more_of_the_gpu_or_is_spread_over_more(tmp_path: Path) -> None:
    found = advice(tmp_path, "rollout engine", True, "rollout.gpu_memory_fraction=0.4")
    assert found[:4] == [
        "rollout.gpu_memory_fraction=0.3",
        "rollout.gpu_memory_fraction=0.2",
        "rollout.tensor_parallel=2",
        "rollout.tensor_parallel=4",
    ]
    assert advice(tmp_path, "rollout engine", False)[0] == "rollout.memory_gib=0.5"
