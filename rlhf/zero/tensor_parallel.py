"""Tensor parallelism with DeepSpeed's AutoTP: consecutive ranks each hold a part of every decoder layer's matrices.

Follows Shoeybi et al. (2019), section 3. Only matrices inside decoder layers are split. Embedding, norms and output
head are replicated, so that log-probabilities are computed as without tensor parallelism. ``whole`` gathers full
weights.

The query, key and value projections and the feed-forward block's first matrices are split by output (and so by head);
the two projections back to the hidden size are split by input. A forward pass all-reduces hidden states after each of
these two, a backward pass all-reduces the gradients of hidden states at each of the other five.

Weights that a role initialises must be drawn from the recipe's seed, not the rank's: DeepSpeed does not check that all
ranks have the same.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from deepspeed.checkpoint.constants import DS_AUTOTP_UC_META
from deepspeed.utils import groups
from torch import Tensor, distributed
from transformers import PreTrainedModel

from rlhf.errors import UserError
from rlhf.placement.parallelism import TENSOR_PARALLEL_TYPES, tensor_parallel_problems

BY_OUTPUT = r".*\.layers\.\d+\.(self_attn\.[qkv]|mlp\.(gate|up))_proj\.weight$"
BY_INPUT = r".*\.layers\.\d+\.(self_attn\.o|mlp\.down)_proj\.weight$"
HEAD_NORMS = r".*\.layers\.\d+\.self_attn\.[qk]_norm\.weight$"
"""Qwen3 normalises each head: the norm's weight is replicated, but gets gradients from the rank's own heads only."""


def settings(ranks: int) -> dict[str, Any]:
    """Return the section ``tensor_parallel`` of DeepSpeed's configuration."""
    specs = [
        {"patterns": [BY_OUTPUT], "partition_type": "column"},
        {"patterns": [BY_INPUT], "partition_type": "row"},
        {"patterns": [HEAD_NORMS], "partition_type": "skip", "grad_allreduce": True},
    ]
    return {"autotp_size": ranks, "partition_config": {"use_default_specs": False, "layer_specs": specs}}


def check_model(model: PreTrainedModel, ranks: int) -> None:
    """Check that the model supports tensor parallelism over ``ranks`` ranks.

    Raises:
        UserError: the model's type is not supported, or its widths are not divisible by ``ranks``.
    """
    config = model.config
    if config.model_type not in TENSOR_PARALLEL_TYPES:
        raise UserError(
            f"placement.<role>.tensor_parallel = {ranks} and a model of type {config.model_type!r}",
            f"tensor parallelism supports the types {', '.join(TENSOR_PARALLEL_TYPES)}",
            "placement.<role>.tensor_parallel=1",
        )
    widths = (config.num_attention_heads, config.num_key_value_heads, config.intermediate_size)
    for problem in tensor_parallel_problems("<role>", f"its {config.model_type} model", *widths, ranks):
        raise problem


def split_dimension(tensor: Tensor) -> int | None:
    """The dimension along which a tensor is split over ranks; None if it is replicated."""
    metadata = getattr(tensor, DS_AUTOTP_UC_META, None)
    return None if metadata is None else metadata["partition_dim"]


def whole_shape(tensor: Tensor) -> tuple[int, ...]:
    """The tensor's shape over all tensor-parallel ranks."""
    dimension = split_dimension(tensor)
    ranks = 1 if dimension is None else groups.get_tensor_model_parallel_world_size()
    return tuple(size * (ranks if i == dimension else 1) for i, size in enumerate(tensor.shape))


@contextmanager
def whole(tensors: Sequence[Tensor]) -> Iterator[None]:
    """Context in which the tensors are whole on every rank (collective over the tensor-parallel group).

    On exit each tensor points to its own part again, in the optimizer's flat buffers.
    """
    split = [tensor for tensor in tensors if split_dimension(tensor) is not None]
    own = [tensor.data for tensor in split]
    try:
        for tensor in split:
            tensor.data = _gather(tensor)
        yield
    finally:
        for tensor, data in zip(split, own, strict=True):
            tensor.data = data


def _gather(tensor: Tensor) -> Tensor:
    dimension, group = split_dimension(tensor), groups.get_tensor_model_parallel_group()
    part = tensor.data.contiguous()
    parts = [torch.empty_like(part) for _ in range(distributed.get_world_size(group))]
    distributed.all_gather(parts, part, group=group)
    return torch.cat(parts, dim=dimension)
