"""A fingerprint of weights that is the same in the trainer and in the engine.

The engine stores weights otherwise: vLLM fuses matrices (q, k and v into one), pads vocabularies, and on CPUs repacks
matrices into a layout that cannot be read back. So the fingerprint is a sum of hashes of single elements: it does not
depend on order, on fusing or on zero padding, and a matrix that is only reachable through its product is recovered
exactly by multiplying it with the identity. One sum a layer says where weights differ. What it cannot see, elements
swapped inside one layer, the comparison of log-probabilities does.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

Fingerprint = dict[str, int]
"""Sum of element hashes, modulo 2^64 and read as a signed number, by layer or by name outside the layers."""

HEAD = "lm_head.weight"
"""The output head's name in an engine, and so in fingerprints."""
_BITS = {4: torch.int32, 2: torch.int16, 1: torch.int8}
_ODD = (-7046029254386353131, -4658895280553007687)  # 0x9E3779B97F4A7C15 and 0xBF58476D1CE4E5B9 (splitmix64), signed
_SLICE = 1 << 24  # elements hashed at one time: bounds the int64 temporaries to 128 MiB


def element_hash_sum(tensor: Tensor) -> int:
    """Sum over elements of a 64-bit mix of their bits; 0 and −0 count nothing, so padding does not matter."""
    flat = (tensor.detach() + 0.0).contiguous().view(-1)  # −0.0 + 0.0 = 0.0
    total = 0
    for begin in range(0, flat.numel(), _SLICE):
        part = flat[begin : begin + _SLICE]
        mixed = part.view(_BITS[part.element_size()]).to(torch.int64) * _ODD[0]
        mixed = (mixed ^ (mixed >> 31)) * _ODD[1]
        total += int((mixed ^ (mixed >> 29)).sum())
    return signed64(total)


def signed64(value: int) -> int:
    """The value modulo 2^64, as a signed 64-bit number."""
    return (value + 2**63) % 2**64 - 2**63


def group_of(name: str) -> str:
    """The layer that a tensor belongs to, up to the first number in its name, or the name itself.

    Without the name of the whole backbone: what is ``gpt_neox`` in the trainer may be ``model`` in the engine.
    """
    parts = name.split(".")
    if len(parts) > 2 and not any(part.isdigit() for part in parts[:2]):
        parts = parts[1:]
    index = next((i for i, part in enumerate(parts) if part.isdigit()), None)
    return ".".join(parts if index is None else parts[: index + 1])


def fingerprint(tensors: Iterable[tuple[str, Tensor]]) -> Fingerprint:
    """Fingerprint of named tensors, in the dtype that they have."""
    sums: Fingerprint = {}
    for name, tensor in tensors:
        group = group_of(name)
        sums[group] = signed64(sums.get(group, 0) + element_hash_sum(tensor))
    return sums


def add(parts: Iterable[Mapping[str, int]]) -> Fingerprint:
    """The fingerprint of a model whose shards have these."""
    sums: Fingerprint = {}
    for part in parts:
        for group, value in part.items():
            sums[group] = signed64(sums.get(group, 0) + value)
    return sums


def differences(sent: Mapping[str, int], held: Mapping[str, int]) -> list[str]:
    """The layers and tensors in which the engine does not hold what the trainer has.

    An engine may have no output head of its own where that is the embedding: then the embedding is proof of both.
    """
    expected = dict(sent)
    head = expected.get(HEAD)
    if HEAD not in held and any(value == head for name, value in expected.items() if name != HEAD):
        del expected[HEAD]
    return sorted(group for group in expected.keys() | held.keys() if expected.get(group) != held.get(group))
