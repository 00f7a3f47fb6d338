"""Builds DeepSpeed's configuration from a role's settings."""

from __future__ import annotations

from typing import Any

from rlhf.config.schema import OptimizerConfig, RoleConfig
from rlhf.zero import tensor_parallel


def deepspeed_config(role: RoleConfig, dtype: str, world: int, max_grad_norm: float = 0.0) -> dict[str, Any]:
    """Return DeepSpeed's configuration for one model.

    Gradient accumulation is set to 1 because ``ZeroEngine`` controls the accumulation boundary of each update.
    bfloat16 gradients are accumulated in float32, except at stage 0, where DeepSpeed does not support it: the result
    then depends slightly on the number of micro-batches.
    """
    zero: dict[str, Any] = {"stage": role.zero_stage, "overlap_comm": False, "round_robin_gradients": False}
    if role.zero_stage == 3:
        zero |= {"stage3_gather_16bit_weights_on_model_save": False, "stage3_param_persistence_threshold": 0}
    if role.offload:
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": True}
        if role.zero_stage == 3:
            zero["offload_param"] = {"device": "cpu", "pin_memory": True}
    section = {"tensor_parallel": tensor_parallel.settings(role.tensor_parallel)} if role.tensor_parallel > 1 else {}
    return {
        "train_batch_size": world,
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": max_grad_norm,
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "bf16": {"enabled": dtype == "bfloat16"},
        "data_types": {"grad_accum_dtype": "fp32" if role.zero_stage > 0 else None},
        "steps_per_print": 10**9,
        "wall_clock_breakdown": False,
        **section,
    }


SCHEDULES = {"linear": "linear", "cosine": "cosine", "constant": "constant_with_warmup"}
"""Learning-rate schedules: name in the recipe → name in transformers."""


def optimizer_arguments(config: OptimizerConfig) -> dict[str, Any]:
    """Arguments of torch's AdamW; ``fused`` runs one kernel over the states instead of one per operation."""
    numbers = {"lr": config.lr, "betas": tuple(config.betas), "eps": config.eps, "weight_decay": config.weight_decay}
    return {**numbers, "fused": True}
