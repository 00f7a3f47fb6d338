"""Sizes of nodes that follow from a recipe's plan, and what Kubernetes leaves of a machine."""

from __future__ import annotations

from pathlib import Path

import pytest

from launch.doctor.needs import Hardware, needs_of
from launch.node_sizes import GIB, allocatable_cpus, allocatable_memory, main, node_sizes
from launch.plan.cluster import parse_cluster
from launch.plan.object_store import SNAPSHOTS, TRAVELLING
from launch.plan.report import make_plan
from rlhf.config.load import load_recipe
from rlhf.errors import UserError

RECIPES = Path(__file__).parents[2] / "recipes"
LLAMA_8B, LLAMA_70B = RECIPES / "llama_8b_8gpu.yaml", RECIPES / "llama_70b_cluster.yaml"
DATA = ["data.path=p.jsonl"]
PARAMETERS = 8_030_261_248


def test_the_object_store_holds_the_snapshots_of_the_plan() -> None:
    """Policy and critic, of 16 bytes a parameter each, twice: on the one node that the recipe needs."""
    sizes = node_sizes(load_recipe(LLAMA_8B, DATA), "ppo", gpus=8, cpus=192)
    assert sizes.workers == 1
    assert sizes.object_store - TRAVELLING == pytest.approx(SNAPSHOTS * 16 * 2 * PARAMETERS, rel=0.1)
    assert sizes.memory > sizes.object_store


def test_more_nodes_share_the_snapshots() -> None:
    recipe = load_recipe(LLAMA_70B, DATA)
    few = node_sizes(recipe, "ppo", gpus=8, cpus=192)
    needs = needs_of(recipe, "ppo", Hardware(nodes=few.workers, cpus=192, gpus=8))
    assert few.workers > 1 and needs is not None
    assert 0 <= few.object_store - needs.snapshots - TRAVELLING < GIB


@pytest.mark.parametrize(("recipe", "nodes"), [(LLAMA_8B, 1), (LLAMA_70B, 8)])
def test_launchers_and_the_plan_name_the_same_object_store(recipe: Path, nodes: int) -> None:
    loaded = load_recipe(recipe, DATA)
    planned = make_plan(loaded, "pipeline", parse_cluster(f"nodes={nodes},gpus=8,gpu=h100-80")).object_store
    assert node_sizes(loaded, "pipeline", gpus=8, cpus=192, workers=nodes).object_store == planned


def test_the_fewest_workers_on_which_every_stage_can_be_placed() -> None:
    """Whose GPUs suffice with all roles on the same ones; half as many in a node are twice as many nodes."""
    recipe = load_recipe(LLAMA_8B, DATA)
    assert [node_sizes(recipe, "pipeline", gpus=gpus, cpus=192).workers for gpus in (8, 4, 2)] == [1, 2, 4]
    assert node_sizes(recipe, "pipeline", gpus=8, cpus=192, workers=3).workers == 3


def test_a_recipe_that_fits_nowhere_is_refused() -> None:
    recipe = load_recipe(LLAMA_8B, [*DATA, "placement.strategy=separate", "rollout.tensor_parallel=16"])
    with pytest.raises(UserError, match="does not fit 1024 workers with 8 GPUs"):
        node_sizes(recipe, "ppo", gpus=8, cpus=192)


def test_a_model_of_unknown_shape_needs_the_size_from_the_user() -> None:
    recipe = load_recipe(LLAMA_8B, [*DATA, "model.path=nobody/has-it"])
    with pytest.raises(UserError, match="does not know the shape") as caught:
        node_sizes(recipe, "ppo", gpus=8, cpus=192)
    assert "object_store_gib" in caught.value.fix
    assert node_sizes(recipe, "ppo", gpus=8, cpus=192, object_store=7 * GIB).object_store == 7 * GIB


@pytest.mark.parametrize(
    ("machine", "least", "most"), [(2048, 1890, 1960), (1152, 1050, 1100), (64, 50, 55), (16, 7, 10)]
)
def test_a_pod_leaves_memory_to_its_machine(machine: int, least: int, most: int) -> None:
    assert least <= allocatable_memory(machine * GIB) / GIB <= most


@pytest.mark.parametrize(("machine", "left"), [(192, 188), (96, 94), (3, 2)])
def test_a_pod_leaves_cores_to_its_machine(machine: int, left: int) -> None:
    assert allocatable_cpus(machine) == left


def test_slurm_is_given_the_bytes(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("SLURM_GPUS_ON_NODE", "8")
    monkeypatch.setenv("SLURM_JOB_NUM_NODES", "1")
    assert main(["object-store", "ppo", str(LLAMA_8B), *DATA]) == 0
    assert int(capsys.readouterr().out) == node_sizes(load_recipe(LLAMA_8B, DATA), "ppo", gpus=8, cpus=192).object_store


def test_where_the_plan_cannot_tell_slurm_is_given_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["object-store", "ppo", "none.yaml"]) == 0
    said = capsys.readouterr()
    assert said.out == "" and "Ray's default object store" in said.err
