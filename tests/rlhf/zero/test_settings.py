from __future__ import annotations

import pytest
import torch
from deepspeed.runtime.config import DeepSpeedConfig
from deepspeed.runtime.zero.config import DeepSpeedZeroConfig
from transformers import SchedulerType

from rlhf.config.schema import OptimizerConfig, RoleConfig
from rlhf.zero.settings import SCHEDULES, deepspeed_config, optimizer_arguments


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_deepspeed_reads_the_role_as_it_was_meant(stage: int, dtype: str) -> None:
    read = DeepSpeedConfig(deepspeed_config(RoleConfig(zero_stage=stage), dtype, 1, "cpu", max_grad_norm=0.5))
    assert read.zero_optimization_stage == stage
    assert read.bfloat16_config.enabled is (dtype == "bfloat16") and not read.float16_config.enabled
    assert read.gradient_clipping == 0.5
    assert read.gradient_accumulation_steps == 1  # the engine counts micro-batches itself
    assert read.zero_config.offload_optimizer is None and read.zero_config.offload_param is None


@pytest.mark.parametrize("world", [1, 2, 8])
def test_the_batch_that_deepspeed_is_told_of_has_one_element_a_rank(world: int) -> None:
    config = deepspeed_config(RoleConfig(ranks=world), "float32", world, "cpu")
    micro, steps = config["train_micro_batch_size_per_gpu"], config["gradient_accumulation_steps"]
    assert config["train_batch_size"] == world * micro * steps  # anything else DeepSpeed refuses


def test_offload_moves_optimizer_states_and_under_stage_3_parameters() -> None:
    second = DeepSpeedConfig(deepspeed_config(RoleConfig(zero_stage=2, offload=True), "bfloat16", 1, "cpu")).zero_config
    third = DeepSpeedConfig(deepspeed_config(RoleConfig(zero_stage=3, offload=True), "bfloat16", 1, "cpu")).zero_config
    assert second.offload_optimizer.device == third.offload_optimizer.device == "cpu"
    assert second.offload_param is None and third.offload_param.device == "cpu"


def test_every_parameter_is_sharded_under_stage_3() -> None:
    """By default DeepSpeed keeps small ones whole on every rank."""
    assert (
        DeepSpeedConfig(
            deepspeed_config(RoleConfig(zero_stage=3), "float32", 1, "cpu")
        ).zero_config.param_persistence_threshold
        == 0
    )


def test_gradients_are_reduced_beside_the_backward_pass_where_that_is_possible() -> None:
    """Not on a CPU, whose cores do both, nor where there is nobody to reduce with."""
    for role, device, overlaps in (
        (RoleConfig(ranks=4), "cuda", True),
        (RoleConfig(ranks=4), "cpu", False),
        (RoleConfig(ranks=1), "cuda", False),
        (RoleConfig(ranks=4, tensor_parallel=4), "cuda", False),
        (RoleConfig(ranks=4, zero_stage=3), "cuda", True),
    ):
        zero = deepspeed_config(role, "bfloat16", role.ranks, device)["zero_optimization"]
        assert DeepSpeedZeroConfig(**zero).overlap_comm is overlaps


def test_schedules_are_known_to_transformers() -> None:
    assert SCHEDULES.keys() == {"linear", "cosine", "constant"}
    assert {SchedulerType(name) for name in SCHEDULES.values()} == {
        SchedulerType.LINEAR, SchedulerType.COSINE, SchedulerType.CONSTANT_WITH_WARMUP
    }  # fmt: skip


def test_adam_is_given_the_recipes_numbers() -> None:
    config = OptimizerConfig(lr=3e-4, betas=(0.8, 0.9), eps=1e-3, weight_decay=0.02)
    adam = torch.optim.AdamW([torch.nn.Parameter(torch.ones(1))], **optimizer_arguments(config))
    expected = {"lr": 3e-4, "betas": (0.8, 0.9), "eps": 1e-3, "weight_decay": 0.02, "amsgrad": False, "fused": True}
    assert {name: adam.defaults[name] for name in expected} == expected
