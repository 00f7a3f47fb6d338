"""The matrix that a weight stands for, whether it is stored as it is or quantised (see ``nf4.py``)."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor


def dequantised(weight: Tensor) -> Tensor:
    """(out, in) matrix that a layer computes with, in its dtype: new if it is quantised, otherwise the same memory."""
    state = getattr(weight, "quant_state", None)
    if state is None:
        return weight.detach()
    from bitsandbytes.functional import dequantize_4bit

    whole: Tensor = dequantize_4bit(weight.detach(), state)
    return whole


def dtype_of(weight: Tensor) -> torch.dtype:
    """The dtype of the dequantised matrix."""
    state = getattr(weight, "quant_state", None)
    dtype: torch.dtype = weight.dtype if state is None else state.dtype
    return dtype


def shape_of(weight: Tensor) -> tuple[int, ...]:
    """The shape of the dequantised matrix."""
    state = getattr(weight, "quant_state", None)
    return tuple(weight.shape if state is None else state.shape)


def stored_tensors(weight: Tensor) -> Iterator[Tensor]:
    """The tensors that hold a matrix: the matrix itself, or its NF4 numbers and scales."""
    yield weight
    if (state := getattr(weight, "quant_state", None)) is not None:
        yield from (state.absmax, state.offset, state.state2.absmax)
