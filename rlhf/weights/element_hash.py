"""The sum of hashes of a tensor's elements: passes of PyTorch on GPUs, on CPUs a loop that numba compiles.

Both forms give the same sum, but for a NaN whose bits PyTorch's addition changes. On a CPU PyTorch's nine passes over
64-bit numbers take fifteen times as long as the loop, and trainer and engine hash all weights in every publish.
"""

from __future__ import annotations

import torch
from torch import Tensor

from rlhf.device import compiles_loops, slice_elements

_BITS = {4: torch.int32, 2: torch.int16, 1: torch.int8}
FACTORS = -7046029254386353131, -4658895280553007687
"""0x9E3779B97F4A7C15 and 0xBF58476D1CE4E5B9 (splitmix64), as signed numbers."""


def element_hash_sum(tensor: Tensor) -> int:
    """Sum over elements of a 64-bit mix of their bits; 0 and −0 contribute 0, so that padding has no effect."""
    flat = _flat(tensor.detach())
    if compiles_loops(flat):
        from rlhf.weights.hash_loop import hash_loop

        bits = flat.view(_BITS[flat.element_size()])
        return int(hash_loop(bits.numpy(), torch.iinfo(bits.dtype).min, *FACTORS))
    return signed64(sum(int(passes(part)) for part in flat.split(slice_elements(flat.device)))) if len(flat) else 0


def signed64(value: int) -> int:
    """The value modulo 2^64, as a signed 64-bit number."""
    return (value + 2**63) % 2**64 - 2**63


def _flat(tensor: Tensor) -> Tensor:
    """(n,) elements in any order, without a copy if the tensor or its transpose is contiguous."""
    return (tensor if tensor.is_contiguous() or tensor.ndim != 2 else tensor.t()).contiguous().view(-1)


def passes(part: Tensor) -> Tensor:
    """The sum of a slice of elements (n,) as passes of PyTorch, modulo 2^64."""
    positive = part + 0.0  # −0.0 + 0.0 = 0.0
    mixed = positive.view(_BITS[part.element_size()]).to(torch.int64)
    mixed *= FACTORS[0]
    mixed ^= mixed >> 31
    mixed *= FACTORS[1]
    mixed ^= mixed >> 29
    return mixed.sum()
