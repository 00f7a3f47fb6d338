"""A fingerprint of weights that is equal in trainer and engine although they store weights differently.

vLLM fuses matrices (q, k and v into one), pads vocabularies, and on CPUs repacks matrices into a layout that cannot be
read back. The fingerprint is therefore a sum of hashes of single elements, which does not depend on order, fusion or
zero padding; a repacked matrix is recovered exactly by multiplying it with the identity. One sum per layer locates
differences. The sum cannot detect elements swapped within a layer; the comparison of log-probabilities does.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from torch import Tensor

from rlhf.weights.element_hash import element_hash_sum, signed64

Fingerprint = dict[str, int]
"""Layer, or name of a tensor outside the layers → sum of element hashes, modulo 2^64 as a signed number."""

HEAD = "lm_head.weight"
"""The output head's name in an engine, and so in fingerprints."""


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
