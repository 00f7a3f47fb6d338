"""Tensor parallelism: neighbouring ranks each hold and compute a part of every decoder layer's matrices, by DeepSpeed's
AutoTP (Shoeybi et al. 2019, section 3).

Split are the matrices inside decoder layers alone. Embedding, norms and output head are whole on every rank, so that
log-probabilities are computed as everywhere. Whoever needs whole weights finds them within ``whole``.

Queries, keys, values and the feed-forward block's first matrices are split by output (and so by head), the two that
come back to the hidden size by input. Hidden states are added up over the ranks after each of the two in a forward
pass, gradients of hidden states at each of the five in a backward pass.

Weights that a role makes anew have to be the same on all ranks, since DeepSpeed does not compare them: whatever draws
them draws from the recipe's seed, not from the rank's.
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
from rlhf.placement.shared_rows import SPLIT_TYPES, unsplittable

BY_OUTPUT = r".*\.layers\.\d+\.(self_attn\.[qkv]|mlp\.(gate|up))_proj\.weight$"
BY_INPUT = r".*\.layers\.\d+\.(self_attn\.o|mlp\.down)_proj\.weight$"
HEAD_NORMS = r".*\.layers\.\d+\.self_attn\.[qk]_norm\.weight$"
"""Qwen3 normalises each head: the norm's weight is whole on every rank, but sees the rank's own heads alone."""


def settings(ranks: int) -> dict[str, Any]:
    """DeepSpeed's section ``tensor_parallel``."""
    specs = [
        {"patterns": [BY_OUTPUT], "partition_type": "column"},
        {"patterns": [BY_INPUT], "partition_type": "row"},
        {"patterns": [HEAD_NORMS], "partition_type": "skip", "grad_allreduce": True},
    ]
    return {"autotp_size": ranks, "partition_config": {"use_default_specs": False, "layer_specs": specs}}


def check_model(model: PreTrainedModel, ranks: int) -> None:
    """Refuse a model whose layers so many ranks cannot share.

    Raises:
        UserError: its type is not known to work, or its widths do not divide.
    """
    config = model.config
    if config.model_type not in SPLIT_TYPES:
        raise UserError(
            f"placement.<role>.tensor_parallel = {ranks} and a model of type {config.model_type!r}",
            f"which matrices to split is known here of {', '.join(SPLIT_TYPES)}",
            "placement.<role>.tensor_parallel=1",
        )
    widths = (config.num_attention_heads, config.num_key_value_heads, config.intermediate_size)
    for problem in unsplittable("<role>", f"its {config.model_type} model", *widths, ranks):
        raise problem


def split_dimension(tensor: Tensor) -> int | None:
    """Along which a tensor is split over ranks; ``None``: this rank has all of it."""
    told = getattr(tensor, DS_AUTOTP_UC_META, None)
    return None if told is None else told["partition_dim"]


def whole_shape(tensor: Tensor) -> tuple[int, ...]:
    """The shape of all ranks' parts together."""
    along = split_dimension(tensor)
    ranks = 1 if along is None else groups.get_tensor_model_parallel_world_size()
    return tuple(size * (ranks if i == along else 1) for i, size in enumerate(tensor.shape))


@contextmanager
def whole(tensors: Sequence[Tensor]) -> Iterator[None]:
    """Within the block the tensors are whole on every rank (collective over the ranks that share them).

    Each is its own part again afterwards, where DeepSpeed keeps it: in the optimizer's flat buffers.
    """
    split = [tensor for tensor in tensors if split_dimension(tensor) is not None]
    own = [tensor.data for tensor in split]
    try:
        for tensor in split:
            tensor.data = _gathered(tensor)
        yield
    finally:
        for tensor, data in zip(split, own, strict=True):
            tensor.data = data


def _gathered(tensor: Tensor) -> Tensor:
    along, group = split_dimension(tensor), groups.get_tensor_model_parallel_group()
    part = tensor.data.contiguous()
    parts = [torch.empty_like(part) for _ in range(distributed.get_world_size(group))]
    distributed.all_gather(parts, part, group=group)
    return torch.cat(parts, dim=along)
