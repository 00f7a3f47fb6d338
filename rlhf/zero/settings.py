"""Builds DeepSpeed's configuration from a role's settings."""

from __future__ import annotations

from typing import Any

from rlhf.config.schema import OptimizerConfig, RoleConfig
from rlhf.device import Device, overlaps_collectives
from rlhf.zero import tensor_parallel

REDUCE_BUCKET = 100_000_000
"""Gradients that are reduced together. The first reduction starts when a bucket is full, so that DeepSpeed's default of
500 million would leave little of a backward pass to overlap with; its buffer is also five times larger. Megatron-Core
takes max(40, ranks) million (``DistributedDataParallel``)."""


def deepspeed_config(
    role: RoleConfig, dtype: str, world: int, device: Device, max_grad_norm: float = 0.0
) -> dict[str, Any]:
    """Return DeepSpeed's configuration for one model.

    Gradient accumulation is set to 1 because ``ZeroEngine`` controls the accumulation boundary of each update.
    bfloat16 gradients are accumulated in float32, except at stage 0, where DeepSpeed does not support it: the result
    then depends slightly on the number of micro-batches.

    ``overlap_comm`` reduces gradients on a stream of its own during the backward pass, with a second bucket at stages 1
    and 2. Buckets of gathered weights, prefetching and live parameters are DeepSpeed's defaults, which the plan counts.
    All parameters are sharded under stage 3: small ones that stay whole would have to be gathered again by every load
    of a checkpoint, and prefetching already gathers them together with their neighbours.
    """
    zero: dict[str, Any] = {
        "stage": role.zero_stage,
        "overlap_comm": world > role.tensor_parallel and overlaps_collectives(device),
        "reduce_bucket_size": REDUCE_BUCKET,
        "round_robin_gradients": False,
    }
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
    """Arguments of torch's AdamW; ``fused`` runs one kernel over the states instead of one per operation.

    On CPUs, where offloaded states are, it takes a tenth of the time of separate operations, and 1.1 to 1.2 times that
    of ``DeepSpeedCPUAdam`` (10 million parameters, one thread), which a run would have to compile for minutes.
    """
    numbers = {"lr": config.lr, "betas": tuple(config.betas), "eps": config.eps, "weight_decay": config.weight_decay}
    return {**numbers, "fused": True}
