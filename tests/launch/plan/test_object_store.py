"""Bytes of Ray's object store on a node, by hand."""

from __future__ import annotations

from pathlib import Path

import pytest

from launch.cli import main
from launch.plan.cluster import parse_cluster
from launch.plan.memory import GIB
from launch.plan.object_store import TRAVELLING, snapshots_on_fullest_node
from launch.plan.report import Plan, as_values, make_plan
from launch.plan.show import show
from rlhf.config.load import load_recipe

RECIPES = Path(__file__).parents[3] / "recipes"
BIG, SMALL = str(RECIPES / "llama_70b_cluster.yaml"), str(RECIPES / "llama_8b_8gpu.yaml")
LLAMA_70B, LLAMA_8B, LLAMA_8B_SCALAR = 70_553_706_496, 8_030_261_248, 7_504_928_768


def plan(recipe: str, cluster: str, *settings: str) -> Plan:
    return make_plan(load_recipe(recipe, settings), "ppo", parse_cluster(cluster))


def test_a_node_holds_two_snapshots_of_its_ranks_and_of_its_neighbours() -> None:
    """Eight of 32 policy ranks on each of four nodes; 16 bytes a weight."""
    made = plan(BIG, "nodes=8,gpus=8,gpu=h100-80")
    [stage] = made.stages
    snapshots = snapshots_on_fullest_node(stage.placed.members, stage.placed.slots)
    assert snapshots == 2 * 2 * 8 * (16 * LLAMA_70B // 32)
    assert made.object_store is not None
    assert 0 <= made.object_store - TRAVELLING - snapshots < GIB and made.object_store % GIB == 0
    assert as_values(made)["object_store"] == made.object_store
    assert f"--object-store-memory={made.object_store})" in show(made)


def test_a_single_node_keeps_no_copies() -> None:
    made = plan(SMALL, "gpus=8,gpu=h100-80")
    [stage] = made.stages
    snapshots = snapshots_on_fullest_node(stage.placed.members, stage.placed.slots)
    assert snapshots == pytest.approx(2 * 16 * (LLAMA_8B + LLAMA_8B_SCALAR), rel=1e-6)


def test_the_command_gives_the_number_alone_for_scripts(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["plan", SMALL, "--cluster", "gpus=8,gpu=h100-80", "--stage", "ppo"]
    assert main([*arguments, "--object-store"]) == 0
    assert int(capsys.readouterr().out) == plan(SMALL, "gpus=8,gpu=h100-80").object_store


def test_without_room_for_the_ranks_there_is_no_number(capsys: pytest.CaptureFixture[str]) -> None:
    small = "nodes=2,gpus=8,gpu=h100-80"
    made = plan(BIG, small)
    assert made.object_store is None and "object store" not in show(made)
    assert main(["plan", BIG, "--cluster", small, "--stage", "ppo", "--object-store"]) == 2
    assert "does not fit" in capsys.readouterr().err
