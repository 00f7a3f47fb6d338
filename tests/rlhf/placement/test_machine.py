from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from rlhf.config.schema import TRAINED, PlacementConfig, Recipe, RewardSourceConfig, RoleConfig, RolloutConfig
from rlhf.placement.machine import (
    Machine,
    check_devices,
    choose_strategy,
    gpus_by_role,
    gpus_needed,
    uses_gpus,
)
from rlhf.placement.pools import NodeGPUs


def recipe(strategy: str = "auto", device: str = "auto", threads: int = 1, **rewards: RewardSourceConfig) -> Recipe:
    """Asks for policy 4, critic 2, reference 1, reward 1, and 3 engines of 2 GPUs: 14 apart, 6 shared."""
    return Recipe(
        name="a",
        rewards=rewards or {"model": RewardSourceConfig(model=TRAINED)},
        rollout=RolloutConfig(engines=3, tensor_parallel=2),
        placement=PlacementConfig(
            strategy=strategy,
            device=device,
            policy=RoleConfig(ranks=4),
            critic=RoleConfig(ranks=2),
            threads_per_rank=threads,
        ),
    )


def nodes(*gpus: int) -> tuple[NodeGPUs, ...]:
    return tuple(NodeGPUs(gpus=each) for each in gpus)


FUNCTION, MODEL = RewardSourceConfig(function="m:f"), RewardSourceConfig(model="folder")


def problems(asked: Recipe, stage: str = "ppo", **machine: Any) -> list[str]:
    return [str(problem) for problem in check_devices(asked, stage, Machine(**{"cpus": 8, **machine}))]


def test_gpus_by_role():
    assert gpus_by_role(recipe(), "ppo") == {"policy": 4, "critic": 2, "reference": 1, "reward": 1, "rollout": 6}
    assert gpus_by_role(recipe(), "pipeline") == gpus_by_role(recipe(), "ppo")
    assert gpus_by_role(recipe(), "sft") == {"policy": 4}
    assert gpus_by_role(recipe(), "reward") == {"reward": 1}
    assert "reward" not in gpus_by_role(recipe(judge=FUNCTION), "ppo")
    assert gpus_by_role(recipe(judge=FUNCTION, one=MODEL, two=MODEL), "ppo")["reward"] == 2


def test_gpus_needed():
    assert gpus_needed(recipe(), "ppo", "separate") == 14
    assert gpus_needed(recipe(), "ppo", "colocated") == 6
    assert gpus_needed(recipe(judge=FUNCTION), "ppo", "separate") == 13


@pytest.mark.parametrize(("gpus", "strategy"), [(14, "separate"), (13, "colocated"), (6, "colocated"), (0, "separate")])
def test_auto_separates_where_gpus_suffice(gpus, strategy):
    assert choose_strategy(recipe(), "ppo", gpus) == strategy
    assert choose_strategy(recipe("colocated"), "ppo", gpus) == "colocated"


@pytest.mark.parametrize(
    ("device", "gpus", "used"), [("auto", 0, False), ("auto", 1, True), ("cpu", 8, False), ("cuda", 0, True)]
)
def test_uses_gpus(device, gpus, used):
    assert uses_gpus(recipe(device=device), Machine(gpus=gpus, cpus=1)) is used


def narrow(strategy):
    """The same with engines of one GPU each, as colocated roles need them."""
    return replace(recipe(strategy), rollout=RolloutConfig(engines=4, tensor_parallel=1))


@pytest.mark.parametrize(("strategy", "enough"), [("auto", 4), ("colocated", 4), ("separate", 12)])
def test_enough_gpus_pass_and_one_fewer_is_refused(strategy, enough):
    assert problems(narrow(strategy), gpus=enough) == []
    (message,) = problems(narrow(strategy), gpus=enough - 1)
    assert message.startswith(f"the run needs {enough} GPUs and there are {enough - 1}\n")


def test_the_table_says_role_asked_and_there():
    (message,) = problems(recipe("separate"), gpus=8)
    assert message.splitlines()[1:] == [
        "    role         asked",
        "    policy           4",
        "    critic           2",
        "    reference        1",
        "    reward           1",
        "    rollout          6",
        "    separate        14  (each role owns its GPUs)",
        "    there            8",
        "  fix: placement.strategy=colocated needs 6; or lower the ranks, rollout.engines or rollout.tensor_parallel, "
        "or add GPUs",
    ]


def test_colocation_is_offered_only_where_it_helps():
    (message,) = problems(narrow("separate"), gpus=3)
    assert "colocated" not in message
    (message,) = problems(narrow("auto"), gpus=3)
    assert "all roles share every GPU" in message and "placement.strategy=colocated" not in message


def test_cuda_without_a_gpu():
    (message,) = problems(recipe(device="cuda"), gpus=0)
    assert "there is no GPU" in message and "placement.device=cpu" in message


def test_engine_fits_into_one_node():
    assert problems(recipe("separate"), gpus=14, nodes=nodes(*[2] * 7)) == []
    (message, *_) = problems(recipe("separate"), gpus=14, nodes=nodes(*[1] * 14))
    assert "rollout.tensor_parallel = 2 and the largest node has 1" in message


def test_colocated_engines_are_of_one_gpu_and_no_more_than_policy_ranks():
    (message,) = problems(recipe("colocated"), gpus=8)
    assert "rollout.tensor_parallel = 2 with colocated roles" in message
    many = replace(recipe("colocated"), rollout=RolloutConfig(engines=5, tensor_parallel=1))
    (message,) = problems(many, gpus=8)
    assert "rollout.engines = 5 and placement.policy.ranks = 4" in message
    assert problems(recipe("colocated"), "sft", gpus=8, nodes=nodes(*[1] * 8)) == []


def test_an_engine_without_gpus_is_one_process():
    (message,) = problems(recipe(), gpus=0)
    assert "rollout.tensor_parallel = 2 without GPUs" in message
    (message,) = problems(recipe(device="cpu"), gpus=8)
    assert "rollout.tensor_parallel = 2 without GPUs" in message
    assert problems(recipe(), "sft", gpus=0) == []


def test_threads_fit_the_cores():
    assert problems(recipe(threads=8), "sft", gpus=0) == []
    (message,) = problems(recipe(threads=9), "sft", gpus=0)
    assert "placement.threads_per_rank = 9 and there are 8 CPU cores" in message


def test_processes_of_a_cluster_are_not_all_on_its_smallest_node() -> None:
    many = replace(recipe(), rollout=RolloutConfig(engines=40))
    (message,) = problems(many, gpus=0, cpus=2)
    assert "the run needs 48 processes" in message
    elsewhere = replace(many, placement=replace(many.placement, ray_address="10.0.0.1:6379"))
    assert problems(elsewhere, gpus=0, cpus=2) == []


@pytest.mark.parametrize(
    ("engines", "gib", "memory", "stage", "gpus", "is_refused"),
    [
        (1, 1e9, 16, "ppo", 0, True),
        (1, 1e9, 16, "pipeline", 0, True),
        (1, 1e9, 16, "generate", 0, True),
        (4, 5, 16, "ppo", 0, True),
        (4, 4, 16, "ppo", 0, False),
        (1, 1e9, 16, "sft", 0, False),
        (1, 1e9, 16, "ppo", 8, False),
        (1, 1e9, None, "ppo", 0, False),
    ],
)
def test_caches_larger_than_the_memory_are_refused_on_cpus(
    engines: int, gib: float, memory: int | None, stage: str, gpus: int, is_refused: bool
) -> None:
    asked = Recipe(name="a", rollout=RolloutConfig(engines=engines, memory_gib=gib))
    found = problems(asked, stage, gpus=gpus, memory=None if memory is None else memory * 2**30)
    assert ["rollout.memory_gib" in problem for problem in found] == [True] * is_refused
    assert not is_refused or "16.0 GiB" in found[0]
