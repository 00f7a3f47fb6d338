"""Checks a recipe's sequence and tensor parallelism, in which several ranks of a role have the same rows.

With ``placement.<role>.sequence_parallel`` each has a part of every row, with ``tensor_parallel`` a part of every
matrix.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator

from rlhf.config.schema import Recipe, RoleConfig
from rlhf.errors import UserError

SEQUENCE_PARALLEL_TYPES = ("llama", "mistral", "qwen2", "qwen3", "gpt_neox", "gpt2")
"""``model_type`` of the models in which only attention combines tokens, through transformers' interface for attention
functions: everything else can be computed for a part of a row separately."""
TENSOR_PARALLEL_TYPES = ("llama", "mistral", "qwen2", "qwen3")
"""``model_type`` of the models whose layers' matrices are known by the names that ``rlhf/zero/tensor_parallel.py``
splits."""


def model_parallel_size(role: RoleConfig) -> int:
    """Number of consecutive ranks that have the same rows."""
    return role.sequence_parallel * role.tensor_parallel


def ranks_with_shared_files(role: RoleConfig) -> range:
    """Ranks of whose snapshots all ranks read a part: the topology, and the weights if ZeRO does not shard them.

    Everything else in a snapshot is read only by the rank that took it.
    """
    return range(role.tensor_parallel)


def data_parallel_size(role: RoleConfig) -> int:
    """Number of parts into which a role's samples are divided: its ranks, or groups of ranks with the same rows."""
    return role.ranks // model_parallel_size(role)


def forward_ranks(role: RoleConfig) -> int:
    """Number of consecutive ranks whose forward passes call each other, so that all must make the same passes.

    Under ZeRO-3 every pass gathers the weights from all ranks.
    """
    return role.ranks if role.zero_stage == 3 else model_parallel_size(role)


def check_parallelism(recipe: Recipe, roles: Iterable[str]) -> Iterator[UserError]:
    """Yield one error for each role whose ranks, or whose randomly initialised model, cannot be divided accordingly."""
    for name in roles:
        role: RoleConfig = getattr(recipe.placement, name)
        for key in ("sequence_parallel", "tensor_parallel"):
            yield from _uneven_ranks(name, key, role)
        yield from _tensor_parallel(recipe, name, role)
        if role.sequence_parallel > 1 and recipe.model.packing == "off":
            yield UserError(
                f"placement.{name}.sequence_parallel = {role.sequence_parallel} and model.packing = off",
                "ranks share packed rows alone",
                f"model.packing=auto, or placement.{name}.sequence_parallel=1",
            )
        if recipe.model.scratch is not None:
            made = recipe.model.scratch
            yield from sequence_parallel_problems(name, "model.scratch", made.heads, made.heads, role.sequence_parallel)
            yield from tensor_parallel_problems(
                name, "model.scratch", made.heads, made.heads, made.intermediate_size, role.tensor_parallel
            )


def _uneven_ranks(name: str, key: str, role: RoleConfig) -> Iterator[UserError]:
    size = getattr(role, key)
    if role.ranks % size:
        yield UserError(
            f"placement.{name}.ranks = {role.ranks} is not divisible by placement.{name}.{key} = {size}",
            "that many neighbouring ranks share a row, and every rank has its part in one"
            if key == "sequence_parallel"
            else "that many neighbouring ranks share each matrix, and every rank has its part in one",
            f"placement.{name}.ranks={-(-role.ranks // size) * size}, or placement.{name}.{key}=1",
        )


def _tensor_parallel(recipe: Recipe, name: str, role: RoleConfig) -> Iterator[UserError]:
    """Yield one error for each setting that tensor parallelism does not support."""
    key = f"placement.{name}.tensor_parallel"
    if role.tensor_parallel == 1:
        return
    what = f"{key} = {role.tensor_parallel}"
    if role.zero_stage not in (1, 2):
        yield UserError(
            f"{what} and placement.{name}.zero_stage = {role.zero_stage}",
            "stage 3 shards whole matrices itself, and at stage 0 nobody takes the norm of all parts of a gradient",
            f"placement.{name}.zero_stage=1 (or 2), or {key}=1",
        )
    if role.sequence_parallel > 1:
        yield UserError(
            f"{what} and placement.{name}.sequence_parallel = {role.sequence_parallel}",
            "a rank has a part of every matrix or of every row, not both",
            f"{key}=1, or placement.{name}.sequence_parallel=1",
        )
    if role.offload:
        yield UserError(
            f"{what} and placement.{name}.offload = true",
            "an optimizer in host memory was not tried over matrices that are split",
            f"placement.{name}.offload=false, or {key}=1 with placement.{name}.zero_stage=3",
        )
    if recipe.model.lora is not None and name == "policy":
        yield UserError(
            f"{what} and model.lora",
            "adapters lie around the layers whose matrices would be split",
            f"{key}=1 or model.lora=null",
        )


def sequence_parallel_problems(role: str, model: str, heads: int, kv_heads: int, ranks: int) -> Iterator[UserError]:
    """Yield an error if a model's heads cannot be divided over the ranks of a sequence-parallel group.

    Query heads are divided evenly; key and value heads are copied if there are fewer of them than ranks.
    """
    fitting = [n for n in _divisors(heads) if kv_heads % n == 0 or n % kv_heads == 0]
    if ranks not in fitting:
        has, why = _heads(heads, kv_heads), "in attention every rank has an equal share of the heads"
        yield _cannot(f"placement.{role}.sequence_parallel", ranks, fitting, f"{model} has {has}", why)


def tensor_parallel_problems(
    role: str, model: str, heads: int, kv_heads: int, intermediate: int, ranks: int
) -> Iterator[UserError]:
    """Yield an error if a model's matrices cannot be divided over the ranks of a tensor-parallel group."""
    fitting = [n for n in _divisors(heads) if kv_heads % n == intermediate % n == 0]
    if ranks not in fitting:
        has = f"{model} has {_heads(heads, kv_heads)}, and feed-forward blocks {intermediate} wide"
        why = "every rank has an equal share of the heads and of each matrix"
        yield _cannot(f"placement.{role}.tensor_parallel", ranks, fitting, has, why)


def _divisors(number: int) -> list[int]:
    """All divisors of a number from 1 on, by rising size."""
    small = [n for n in range(1, math.isqrt(number) + 1) if number % n == 0]
    return sorted({*small, *(number // n for n in small)})


def _heads(heads: int, kv_heads: int) -> str:
    return f"{heads} heads" + (f", {kv_heads} of keys and values" if kv_heads != heads else "")


def _cannot(key: str, ranks: int, fitting: list[int], has: str, why: str) -> UserError:
    possible = ", ".join(map(str, fitting))
    return UserError(
        f"{key} = {ranks} and {has}", why, f"{key}={max(n for n in fitting if n <= ranks)}; possible are {possible}"
    )
