"""Needs of recipes, against counts by hand from the models' public sizes."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from launch.doctor import needs
from launch.doctor.disk import Room
from launch.doctor.findings import GIB
from launch.doctor.gpus import GPU
from launch.doctor.needs import Hardware, Needs, check_plan, needs_of
from launch.plan import object_store
from rlhf.config.load import load_recipe
from rlhf.config.schema import Recipe
from rlhf.gpus import gpu_named
from rlhf.placement.machine import Stage

ROOT = Path(__file__).parents[3]
LLAMA_70B, LLAMA_8B, LLAMA_8B_SCALAR = 70_553_706_496, 8_030_261_248, 7_504_928_768
"""Parameters of two policies, and of the 8B model with one output instead of its vocabulary's."""
H100 = GPU(name="NVIDIA H100 80GB HBM3", memory=81559 * 2**20, used=0, mode="Default")
EIGHT_NODES = Hardware(nodes=8, cpus=96, gpus=8, gpu=H100)


def recipe(name: str, *settings: str) -> Recipe:
    return load_recipe(ROOT / "recipes" / name, settings)


def needed(of: Recipe, stage: Stage, hardware: Hardware) -> Needs:
    found = needs_of(of, stage, hardware)
    assert found is not None
    return found


def test_the_disk_of_the_70b_recipe() -> None:
    """16 bytes per trained weight; the two newest, the best, and the one being written; three models."""
    room = needed(recipe("llama_70b_cluster.yaml"), "pipeline", EIGHT_NODES).room
    checkpoint = 16 * (LLAMA_70B + LLAMA_8B_SCALAR)
    models = 2 * (LLAMA_70B + LLAMA_8B_SCALAR + LLAMA_70B)
    kept = 4 * (16 * LLAMA_70B + 16 * LLAMA_8B_SCALAR + checkpoint)  # of SFT, the reward model and PPO
    assert room == Room(checkpoint=checkpoint, checkpoints=kept, models=models)


def test_early_stopping_keeps_the_best_policy_beside_the_last() -> None:
    plain, watched = (
        needed(recipe("llama_70b_cluster.yaml", *settings), "ppo", EIGHT_NODES).room
        for settings in ((), ("early_stop.scorer.function=judge.py:score",))
    )
    assert watched.models - plain.models == 2 * LLAMA_70B
    assert watched.checkpoints == plain.checkpoints


def test_the_memory_of_its_fullest_node() -> None:
    """Eight of 32 policy ranks, each with its part of two snapshots, another node's, and a GiB for each process.

    A node with an engine over eight GPUs has nine processes.
    """
    found = needed(recipe("llama_70b_cluster.yaml"), "ppo", EIGHT_NODES)
    assert found.snapshots == 2 * 2 * 8 * (16 * LLAMA_70B // 32)
    assert found.host == found.snapshots + 9 * GIB


def test_offloading_takes_host_memory() -> None:
    """Under ZeRO-3: the rank's part of the weights, and 16 bytes per weight that it trains."""
    plain, off = (
        needed(recipe("llama_70b_cluster.yaml", f"placement.policy.offload={value}"), "sft", EIGHT_NODES).host
        for value in ("false", "true")
    )
    snapshots = 2 * 2 * 8 * (16 * LLAMA_70B // 32)
    assert plain == 8 * GIB + snapshots
    assert off - plain == 8 * ((2 * LLAMA_70B) // 32 + 16 * LLAMA_70B // 32)


def test_what_rests_is_counted_twice_and_in_snapshots() -> None:
    """16 bytes per number of the 8B recipe's policy and critic, float32 gradients included.

    In addition, two snapshots, and 32 rank processes and 16 engine processes.
    """
    found = needed(recipe("llama_8b_8gpu.yaml"), "ppo", Hardware(nodes=1, gpus=8, cpus=64, gpu=H100))
    trained = LLAMA_8B + LLAMA_8B_SCALAR
    assert found.snapshots == pytest.approx(2 * 16 * trained, rel=1e-6)
    assert found.host == pytest.approx(2 * 16 * trained + found.snapshots + 48 * GIB, rel=1e-6)
    assert found.host < 1024 * GIB  # as the recipe's header says


def test_without_gpus_everything_is_in_host_memory() -> None:
    """Six rank processes, two of the engine, and its KV cache of 1 GiB; the models are small in comparison."""
    found = needed(recipe("quickstart.yaml"), "pipeline", Hardware(nodes=1, cpus=2))
    assert 9 * GIB < found.host < 10 * GIB


def test_more_nodes_share_what_there_is_to_hold() -> None:
    one, two = (needed(recipe("quickstart.yaml"), "ppo", Hardware(nodes=nodes, cpus=2)).host for nodes in (1, 2))
    assert one / 2 < two < one


@pytest.mark.parametrize(
    ("name", "mib", "known"),
    [
        ("NVIDIA H100 80GB HBM3", 81559, "h100-80"),
        ("NVIDIA A100-SXM4-40GB", 40960, "a100-40"),
        ("NVIDIA A100 80GB PCIe", 81920, "a100-80"),
        ("NVIDIA L4", 23034, "l4-24"),
        ("NVIDIA L40S", 46068, "l40s-48"),
        ("NVIDIA GeForce RTX 4090", 24564, "rtx4090-24"),
        ("Tesla T4", 15360, None),
    ],
)
def test_gpus_that_the_plan_knows(name: str, mib: int, known: str | None) -> None:
    assert gpu_named(name, mib * 2**20) == known


def test_a_plan_that_fits_and_one_that_does_not() -> None:
    big = recipe("llama_70b_cluster.yaml")
    assert check_plan(big, "pipeline", EIGHT_NODES).found == "8 × 8 GPUs suffice (h100-80)"
    found = check_plan(big, "pipeline", Hardware(nodes=2, cpus=96, gpus=8, gpu=H100))
    assert found.status == "failed" and found.found.startswith("the run needs 32 GPUs and there are 16")
    assert "nodes=2,gpus=8,gpu=h100-80" in found.fix


def test_gpus_of_an_unknown_type_are_only_counted() -> None:
    t4 = GPU(name="Tesla T4", memory=15360 * 2**20, used=0, mode="Default")
    found = check_plan(recipe("llama_70b_cluster.yaml"), "pipeline", Hardware(nodes=8, cpus=96, gpus=8, gpu=t4))
    assert found.status == "ok" and "memory was not counted" in found.found


def test_a_recipe_for_gpus_where_there_are_none() -> None:
    found = check_plan(recipe("llama_70b_cluster.yaml"), "ppo", Hardware(nodes=8, cpus=96))
    assert (found.status, found.found) == ("failed", "placement.device = cuda and there is no GPU")
    assert "placement.device=cpu" in found.fix and "machines with GPUs" in found.fix


def test_a_model_of_unknown_shape_is_no_fault(tmp_path: Path) -> None:
    unknown = recipe("llama_70b_cluster.yaml", f"model.path={tmp_path}")
    assert needs_of(unknown, "pipeline", EIGHT_NODES) is None
    found = check_plan(unknown, "pipeline", EIGHT_NODES)
    assert found.status == "warning" and "was not counted: the shape of" in found.found
    assert check_plan(unknown, "pipeline", Hardware(nodes=1, cpus=96, gpus=8, gpu=H100)).status == "failed"


@pytest.mark.parametrize(
    ("value", "file", "constant"),
    [
        (object_store.BYTES_PER_WEIGHT, "rlhf/zero/checkpoint.py", "BYTES_PER_WEIGHT"),
        (needs.CHUNK, "rlhf/weights/shared_memory.py", "CHUNK_BYTES"),
    ],
)
def test_numbers_that_others_state(value: int, file: str, constant: str) -> None:
    """They are defined twice, because their first definitions import torch or Ray."""
    line = re.search(rf"^{constant} = ([\d *]+)", (ROOT / file).read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert line is not None
    assert value == eval(line[1])
