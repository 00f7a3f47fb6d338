"""The choice for ``auto``: separate if everything fits, else colocated, with the reason."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from launch.plan.cluster import parse_cluster
from launch.plan.members import Shapes
from launch.plan.report import make_plan
from launch.plan.strategy import StrategyChoice, choose
from launch.preflight import _with_strategy
from rlhf.gpus import gpu_named
from rlhf.placement.machine import Machine
from rlhf.placement.pools import NodeGPUs
from tests.launch.plan.small import find
from tests.launch.plan.test_plan import SMALL, recipe

GIB = 2**30


def chosen(cluster: str, **settings: Any) -> StrategyChoice | None:
    made = recipe(**{**SMALL, "placement__strategy": "auto", **settings})
    return choose(made, "ppo", parse_cluster(cluster), Shapes(made, find))


def test_apart_where_there_are_gpus_enough() -> None:
    choice = chosen("gpus=8,gpu=h100-80")
    assert choice is not None and choice.strategy == "separate"
    assert choice.why.startswith("separate: 5 of 8 GPUs, the fullest with ")


def test_together_where_there_are_too_few() -> None:
    choice = chosen("gpus=4,gpu=h100-80", rollout__gpu_memory_fraction=0.3)
    assert choice is not None and choice.strategy == "colocated"
    assert "colocated: 1 of 4 GPUs" in choice.why and choice.why.endswith("; separate needs 5 GPUs of 4")


def test_together_where_a_role_alone_does_not_fit_on_its_gpu() -> None:
    """An 8B model on one GPU of 80 GB: training takes 16 bytes per parameter. Over 8 shared GPUs, 2."""
    ranks = {f"placement__{role}__ranks": 8 for role in ("policy", "critic", "reference", "reward")}
    ranks |= {f"placement__{role}__zero_stage": 3 for role in ("policy", "critic", "reference", "reward")}
    large = {"model": "meta-llama/Llama-3.1-8B", "rollout__gpu_memory_fraction": 0.3, "rollout__engines": 1}
    few = chosen("nodes=1,gpus=8,gpu=h200-141", **large)
    assert few is not None and "does not fit (policy: " in few.why
    many = chosen("nodes=1,gpus=8,gpu=h200-141", **large, **ranks)
    assert many is not None and many.strategy == "colocated", many
    assert "separate needs 33 GPUs of 8" in many.why


def test_where_nothing_fits_the_number_decides_and_that_is_said() -> None:
    choice = chosen("gpus=8,gpu=l4-24", model="meta-llama/Llama-3.1-8B")
    assert choice is not None and choice.strategy == "separate"
    assert choice.why.startswith("separate, by the number of GPUs alone: separate does not fit (")


def test_who_says_who_shares_with_whom_is_heard() -> None:
    choice = chosen("gpus=3,gpu=h100-80", placement__reference__share_with="policy")
    assert choice is not None and "colocated" not in choice.why


def test_gpus_are_counted_as_the_smallest_node_has_them() -> None:
    """Five roles cannot be apart on nodes of one and three GPUs."""
    name = "NVIDIA H100 80GB HBM3"
    machine = Machine(gpus=4, cpus=8, nodes=(NodeGPUs(gpus=1, type=name), NodeGPUs(gpus=3, type=name)))
    made = recipe(**{**SMALL, "placement__strategy": "auto"}, rollout__gpu_memory_fraction=0.3)
    assert _with_strategy(made, "ppo", machine).placement.strategy == "colocated"


def test_nothing_is_chosen_where_the_recipe_says_it_or_one_role_is_alone() -> None:
    assert chosen("gpus=8,gpu=h100-80", placement__strategy="colocated") is None
    made = replace(recipe(**{**SMALL, "placement__strategy": "auto"}))
    assert choose(made, "sft", parse_cluster("gpus=8,gpu=h100-80"), Shapes(made, find)) is None


def test_the_plan_says_it_too() -> None:
    made = recipe(**{**SMALL, "placement__strategy": "auto"})
    plan = make_plan(made, "ppo", parse_cluster("gpus=8,gpu=h100-80"), find)  # type: ignore[arg-type]
    assert plan.recipe.placement.strategy == "separate" and plan.why.startswith("separate: ")


@pytest.mark.parametrize(
    ("name", "memory", "known"),
    [
        ("NVIDIA H100 80GB HBM3", 81559 * 2**20, "h100-80"),
        ("NVIDIA A100-SXM4-40GB", 40 * GIB, "a100-40"),
        ("NVIDIA A100-SXM4-80GB", 80 * GIB, "a100-80"),
        ("A100", None, "a100-40"),
        ("A100-80G", None, "a100-80"),
        ("NVIDIA H100 NVL", 94 * GIB, None),
        ("Tesla T4", None, None),
    ],
)
def test_gpus_by_the_names_that_drivers_and_ray_give_them(name: str, memory: int | None, known: str | None) -> None:
    assert gpu_named(name, memory) == known
