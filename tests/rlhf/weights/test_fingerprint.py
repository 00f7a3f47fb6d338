from __future__ import annotations

import math
import struct

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from rlhf.weights import fingerprint as module
from rlhf.weights.fingerprint import add, differences, element_hash_sum, fingerprint, group_of, signed64

DTYPES = [torch.float32, torch.bfloat16]


def matrix(seed: int = 0, rows: int = 12, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(rows, 8, generator=torch.Generator().manual_seed(seed)).to(dtype)


def scalar_hash(value: float) -> int:
    """The same mix of a float32's bits in whole numbers of any size, one element at a time."""
    mask = 2**64 - 1
    [bits] = struct.unpack("<i", struct.pack("<f", value))
    mixed = bits * 0x9E3779B97F4A7C15 & mask
    mixed = (mixed ^ (signed64(mixed) >> 31 & mask)) * 0xBF58476D1CE4E5B9 & mask
    return signed64(mixed ^ (signed64(mixed) >> 29 & mask))


@given(st.lists(st.floats(width=32, allow_nan=False).filter(lambda x: math.copysign(1, x) > 0 or x), max_size=20))
def test_the_sum_is_that_of_arithmetic_without_overflow(values: list[float]) -> None:
    assert element_hash_sum(torch.tensor(values)) == signed64(sum(scalar_hash(value) for value in values))


@pytest.mark.parametrize("dtype", DTYPES)
def test_order_and_shape_do_not_matter(dtype: torch.dtype) -> None:
    tensor = matrix(dtype=dtype)
    shuffled = tensor.flatten()[torch.randperm(tensor.numel(), generator=torch.Generator().manual_seed(1))]
    assert element_hash_sum(shuffled) == element_hash_sum(tensor) == element_hash_sum(tensor.T)


@pytest.mark.parametrize("dtype", DTYPES)
def test_fusing_does_not_matter(dtype: torch.dtype) -> None:
    query, key, value = (matrix(seed, rows, dtype) for seed, rows in ((1, 8), (2, 4), (3, 4)))
    layer = "model.layers.7.self_attn."
    apart = fingerprint(
        [(f"{layer}q_proj.weight", query), (f"{layer}k_proj.weight", key), (f"{layer}v_proj.weight", value)]
    )
    fused = fingerprint([(f"{layer}qkv_proj.weight", torch.cat([query, key, value]))])
    assert apart == fused
    assert apart.keys() == {"layers.7"}


@pytest.mark.parametrize("dtype", DTYPES)
def test_padding_with_zeros_of_either_sign_does_not_matter(dtype: torch.dtype) -> None:
    tensor = matrix(dtype=dtype)
    zeros = torch.zeros(5, 8, dtype=dtype)
    assert element_hash_sum(torch.cat([tensor, zeros, -zeros])) == element_hash_sum(tensor) != 0


@given(
    place=st.integers(0, 95),
    up=st.booleans(),
    dtype=st.sampled_from(DTYPES),
    seed=st.integers(0, 50),
)
def test_one_element_changed_by_its_last_bit_is_seen(place: int, up: bool, dtype: torch.dtype, seed: int) -> None:
    tensor = matrix(seed, dtype=dtype)
    bits = torch.int32 if dtype == torch.float32 else torch.int16
    changed = tensor.clone()
    changed.view(-1).view(bits)[place] += 1 if up else -1
    assert (changed != tensor).sum() == 1
    assert element_hash_sum(changed) != element_hash_sum(tensor)


@given(place=st.integers(0, 95), dtype=st.sampled_from(DTYPES))
def test_a_changed_sign_is_seen(place: int, dtype: torch.dtype) -> None:
    tensor = matrix(dtype=dtype)
    changed = tensor.clone()
    changed.view(-1)[place] *= -1
    assert element_hash_sum(changed) != element_hash_sum(tensor)
    assert element_hash_sum(-tensor) != element_hash_sum(tensor)


def test_changes_that_leave_the_sum_of_the_numbers_alone_are_seen() -> None:
    assert element_hash_sum(torch.tensor([1.0, 3.0])) != element_hash_sum(torch.tensor([2.0, 2.0]))
    assert element_hash_sum(torch.tensor([1.0, -1.0])) != 0
    assert element_hash_sum(torch.tensor([1.0, 1.0])) != element_hash_sum(torch.tensor([1.0]))


def test_another_dtype_is_another_fingerprint() -> None:
    tensor = torch.ones(4)
    assert element_hash_sum(tensor) != element_hash_sum(tensor.to(torch.bfloat16))


def test_large_tensors_are_hashed_slice_by_slice(monkeypatch: pytest.MonkeyPatch) -> None:
    tensor = matrix()
    whole = element_hash_sum(tensor)
    monkeypatch.setattr(module, "slice_elements", lambda device: 7)
    assert element_hash_sum(tensor) == whole


@pytest.mark.parametrize(
    ("name", "group"),
    [
        ("model.layers.11.mlp.experts.3.w1.weight", "layers.11"),
        ("gpt_neox.layers.11.attention.dense.bias", "layers.11"),
        ("transformer.h.0.ln_1.bias", "h.0"),
        ("h.0.ln_1.bias", "h.0"),
        ("lm_head.weight", "lm_head.weight"),
        ("model.embed_tokens.weight", "embed_tokens.weight"),
    ],
)
def test_tensors_are_grouped_by_layer(name: str, group: str) -> None:
    assert group_of(name) == group


def test_shards_add_up_to_the_whole() -> None:
    named = [(f"model.layers.{i}.weight", matrix(i)) for i in range(3)]
    shards = [fingerprint((name, part) for name, tensor in named for part in [tensor[r::2]]) for r in range(2)]
    assert add(shards) == fingerprint(named)


@given(st.integers(-(2**70), 2**70))
def test_sums_are_kept_in_64_bits(value: int) -> None:
    kept = signed64(value)
    assert -(2**63) <= kept < 2**63 and (kept - value) % 2**64 == 0


def test_differences_name_what_is_changed_missing_or_too_much() -> None:
    sent = {"model.layers.0": 1, "model.layers.1": 2, "lm_head.weight": 3}
    assert differences(sent, dict(reversed(sent.items()))) == []
    assert differences(sent, {"model.layers.0": 1, "model.layers.1": 5, "bias": 0}) == [
        "bias",
        "lm_head.weight",
        "model.layers.1",
    ]


def test_a_tied_head_that_the_engine_has_not_is_verified_by_the_embedding() -> None:
    sent = {"embed_tokens.weight": 7, "lm_head.weight": 7, "layers.0": 3}
    assert differences(sent, {"embed_tokens.weight": 7, "layers.0": 3}) == []
    assert differences(sent, {"embed_tokens.weight": 8, "layers.0": 3}) == ["embed_tokens.weight"]
    assert differences(sent, {"embed_tokens.weight": 7, "lm_head.weight": 8, "layers.0": 3}) == ["lm_head.weight"]
    untied = {**sent, "lm_head.weight": 9}
    assert differences(untied, {"embed_tokens.weight": 7, "layers.0": 3}) == ["lm_head.weight"]
