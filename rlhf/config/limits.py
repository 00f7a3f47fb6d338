"""What each number of a recipe may be by itself. How numbers must fit together is in ``validate``.

Beside its own limit every number has that of the type it is held in: see ``LARGEST``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

from rlhf.config import schema
from rlhf.config.keys import join
from rlhf.errors import UserError


@dataclass(frozen=True)
class Limit:
    """A condition on one number, and the same in words."""

    text: str
    holds: Callable[[float], bool]


LARGEST: dict[type, float] = {int: 2**32 - 1, float: 3.4e38}
"""Largest size of a number: seeds have 32 bits and counts fewer, and tensors are in single precision."""
UNSHOWN = 10**300  # Python refuses to write whole numbers of thousands of digits

POSITIVE = Limit("above 0", lambda x: x > 0)
NOT_NEGATIVE = Limit("at least 0", lambda x: x >= 0)
SECONDS = Limit("above 0, at most 1e9", lambda x: 0 < x <= 1e9)  # the waits of the operating system end before 1e10
NOT_POSITIVE = Limit("at most 0", lambda x: x <= 0)
COUNT = Limit("at least 1", lambda x: x >= 1)
ANY = Limit("any number", lambda x: True)
ABOVE_ONE = Limit("above 1", lambda x: x > 1)
BELOW_HALF = Limit("from 0 to below 0.5", lambda x: 0 <= x < 0.5)
OPEN_UNIT = Limit("between 0 and 1, both excluded", lambda x: 0 < x < 1)
CLOSED_UNIT = Limit("from 0 to 1", lambda x: 0 <= x <= 1)
BELOW_ONE = Limit("from 0 to below 1", lambda x: 0 <= x < 1)
SHARE = Limit("above 0, at most 1", lambda x: 0 < x <= 1)
SEED = Limit("from 0 to 4294967295", lambda x: 0 <= x < 2**32)
ZERO_OR_ONE = Limit("0 or 1", lambda x: x in (0, 1))
BYTE_ALPHABET = Limit("at least 258", lambda x: x >= 258)  # 256 bytes, the pad token and the end token

LIMITS: dict[type, dict[str, Limit]] = {
    schema.Recipe: {"seed": SEED},
    schema.ScratchConfig: {
        "hidden_size": COUNT,
        "layers": COUNT,
        "heads": COUNT,
        "intermediate_size": COUNT,
        "vocab_size": BYTE_ALPHABET,
        "max_length": COUNT,
    },
    schema.DataConfig: {
        "held_out_fraction": BELOW_ONE,
        "max_prompt_length": COUNT,
        "max_response_length": COUNT,
        "max_rows": COUNT,
    },
    schema.OptimizerConfig: {
        "lr": POSITIVE,
        "warmup_steps": NOT_NEGATIVE,
        "betas": BELOW_ONE,
        "eps": POSITIVE,
        "weight_decay": NOT_NEGATIVE,
        "max_grad_norm": NOT_NEGATIVE,
    },
    schema.SFTConfig: {"epochs": COUNT, "batch_size": COUNT, "eval_every": COUNT},
    schema.RewardConfig: {"epochs": COUNT, "batch_size": COUNT, "eval_every": COUNT},
    schema.AlgorithmConfig: {
        "kl_coef": NOT_NEGATIVE,
        "clip_range": OPEN_UNIT,
        "clip_range_high": POSITIVE,
        "dual_clip": ABOVE_ONE,
        "value_clip_range": POSITIVE,
        "entropy_coef": NOT_NEGATIVE,
        "gamma": CLOSED_UNIT,
        "lam": CLOSED_UNIT,
        "missing_eos_penalty": NOT_NEGATIVE,
        "length_penalty": NOT_NEGATIVE,
        "reward_clip": POSITIVE,
        "target_kl": POSITIVE,
        "importance_cap": COUNT,
        "epochs": COUNT,
        "minibatches": COUNT,
        "critic_warmup_steps": NOT_NEGATIVE,
    },
    schema.AdaptiveKLConfig: {"target": POSITIVE, "horizon": COUNT},
    schema.LoRAConfig: {"rank": COUNT, "alpha": POSITIVE},
    schema.DPOConfig: {
        "beta": POSITIVE,
        "label_smoothing": BELOW_HALF,
        "epochs": COUNT,
        "batch_size": COUNT,
        "eval_every": COUNT,
    },
    schema.EndpointConfig: {
        "batch_size": COUNT,
        "connections": COUNT,
        "timeout_seconds": SECONDS,
        "retries": NOT_NEGATIVE,
    },
    schema.RewardSourceConfig: {"weight": ANY, "max_length": COUNT},
    schema.EarlyStopConfig: {"every": COUNT, "prompts": COUNT, "patience": COUNT},
    schema.PPOConfig: {"steps": COUNT, "batch_size": COUNT, "samples_per_prompt": COUNT, "staleness": ZERO_OR_ONE},
    schema.RolloutConfig: {
        "engines": COUNT,
        "tensor_parallel": COUNT,
        "temperature": POSITIVE,
        "max_response_length": COUNT,
        "block_size": COUNT,
        "memory_gib": POSITIVE,
        "gpu_memory_fraction": SHARE,
    },
    schema.RoleConfig: {
        "ranks": COUNT,
        "sequence_parallel": COUNT,
        "tensor_parallel": COUNT,
        "micro_batch_tokens": COUNT,
    },
    schema.PlacementConfig: {
        "threads_per_rank": COUNT,
        "start_timeout_seconds": SECONDS,
        "phase_timeout_seconds": SECONDS,
    },
    schema.CheckpointConfig: {
        "every": COUNT,
        "keep_last": COUNT,
        "keep_best": NOT_NEGATIVE,
        "snapshot_every": NOT_NEGATIVE,
        "failures": COUNT,
        "grace_seconds": SECONDS,
        "time_limit_seconds": SECONDS,
        "before_deadline": NOT_NEGATIVE,
    },
    schema.RecoveryConfig: {
        "restarts": NOT_NEGATIVE,
        "backoff_seconds": NOT_NEGATIVE,
        "backoff_limit_seconds": NOT_NEGATIVE,
        "stall_factor": ABOVE_ONE,
        "stall_floor_seconds": SECONDS,
        "bad_samples": NOT_NEGATIVE,
    },
    schema.CanaryConfig: {
        "ratio_tolerance": POSITIVE,
        "clipfrac_limit": CLOSED_UNIT,
        "step0_kl_limit": POSITIVE,
        "logprob_gap_limit": POSITIVE,
        "min_kl": NOT_POSITIVE,
        "max_kl": POSITIVE,
    },
    schema.AlertConfig: {
        "max_kl": POSITIVE,
        "length_share": BELOW_ONE,
        "entropy_share": BELOW_ONE,
        "restarts": NOT_NEGATIVE,
        "repeat_steps": COUNT,
    },
    schema.TrackingConfig: {
        "samples_per_step": NOT_NEGATIVE,
        "table_every": COUNT,
        "table_rows": COUNT,
        "histogram_every": COUNT,
    },
    schema.EvaluationConfig: {"prompts": COUNT, "show": NOT_NEGATIVE},
}


def out_of_limits(section: Any, prefix: str = "") -> Iterator[UserError]:
    """One error for each number of the section, and of the sections inside it, that is impossible by itself."""
    limits = LIMITS.get(type(section), {})
    for field in fields(section):
        value, key = getattr(section, field.name), join(prefix, field.name)
        if is_dataclass(value):
            yield from out_of_limits(value, key)
        elif isinstance(value, dict):
            for name, part in value.items():
                if is_dataclass(part):
                    yield from out_of_limits(part, join(key, name))
        elif value is not None and field.name in limits:
            yield from _outside(key, value, limits[field.name])


def _outside(key: str, value: Any, limit: Limit) -> Iterator[UserError]:
    numbers = value if isinstance(value, tuple) else (value,)
    if any(abs(number) > UNSHOWN for number in numbers):
        yield UserError(f"{key} has more than 300 digits", fix=f"choose a value {limit.text}")
    elif any(abs(number) > LARGEST[type(number)] for number in numbers):
        fix = f"choose a value {limit.text}, and not above {LARGEST[type(numbers[0])]:,}"
        yield UserError(f"{key} = {value} is out of range", fix=fix)
    elif not all(limit.holds(number) for number in numbers):
        yield UserError(f"{key} = {value} is out of range", fix=f"choose a value {limit.text}")
