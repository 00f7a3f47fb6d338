"""A fingerprint of weights that is equal in trainer and engine although they store weights differently.

vLLM fuses matrices (q, k and v into one), pads vocabularies, and on CPUs repacks matrices into a layout that cannot be
read back. The fingerprint is therefore a sum of hashes of single elements, which does not depend on order, fusion or
zero padding; a repacked matrix is recovered exactly by multiplying it with the identity. One sum per layer locates
differences. The sum cannot detect elements swapped within a layer; the comparison of log-probabilities does.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from rlhf.device import slice_elements

Fingerprint = dict[str, int]
"""Layer, or name of a tensor outside the layers → sum of element hashes, modulo 2^64 as a signed number."""

HEAD = "lm_head.weight"
"""The output head's name in an engine, and so in fingerprints."""
_BITS = {4: torch.int32, 2: torch.int16, 1: torch.int8}
_ODD = (-7046029254386353131, -4658895280553007687)  # 0x9E3779B97F4A7C15 and 0xBF58476D1CE4E5B9 (splitmix64), signed


def element_hash_sum(tensor: Tensor) -> int:
    """Sum over elements of a 64-bit mix of their bits; 0 and −0 contribute 0, so that padding has no effect."""
    flat, size = _flat(tensor.detach()), slice_elements(tensor.device)
    sums = [_hash_sum(part) for part in flat.split(size)] if len(flat) else []
    return signed64(sum(int(each) for each in sums))


def _flat(tensor: Tensor) -> Tensor:
    """(n,) elements in any order, without a copy if the tensor or its transpose is contiguous."""
    return (tensor if tensor.is_contiguous() or tensor.ndim != 2 else tensor.t()).contiguous().view(-1)


def _hash_sum(part: Tensor) -> Tensor:
    positive = part + 0.0  # −0.0 + 0.0 = 0.0
    mixed = positive.view(_BITS[part.element_size()]).to(torch.int64)
    mixed *= _ODD[0]
    mixed ^= mixed >> 31
    mixed *= _ODD[1]
    mixed ^= mixed >> 29
    return mixed.sum()


def signed64(value: int) -> int:
    """The value modulo 2^64, as a signed 64-bit number."""
    return (value + 2**63) % 2**64 - 2**63


def group_of(name: str) -> str:
    """The layer of a tensor, which is its name up to the first number, or its whole name outside the layers.

    The backbone's name is removed, because it can differ between trainer (``gpt_neox``) and engine (``model``).
    """
    parts = name.split(".")
    if len(parts) > 2 and not any(part.isdigit() for part in parts[:2]):
        parts = parts[1:]
    index = next((i for i, part in enumerate(parts) if part.isdigit()), None)
    return ".".join(parts if index is None else parts[: index + 1])


def fingerprint(tensors: Iterable[tuple[str, Tensor]]) -> Fingerprint:
    """Fingerprint of named tensors, in their dtype."""
    sums: Fingerprint = {}
    for name, tensor in tensors:
        group = group_of(name)
        sums[group] = signed64(sums.get(group, 0) + element_hash_sum(tensor))
    return sums


def add(parts: Iterable[Mapping[str, int]]) -> Fingerprint:
    """Add the fingerprints of a model's shards."""
    sums: Fingerprint = {}
    for part in parts:
        for group, value in part.items():
            sums[group] = signed64(sums.get(group, 0) + value)
    return sums


def differences(sent: Mapping[str, int], held: Mapping[str, int]) -> list[str]:
    """The layers and tensors in which trainer and engine differ.

    An engine may hold no separate output head if it is tied to the embedding; the embedding then verifies both.
    """
    expected = dict(sent)
    head = expected.get(HEAD)
    if HEAD not in held and any(value == head for name, value in expected.items() if name != HEAD):
        del expected[HEAD]
    return sorted(group for group in expected.keys() | held.keys() if expected.get(group) != held.get(group))
