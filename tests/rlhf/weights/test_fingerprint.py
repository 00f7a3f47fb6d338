from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from rlhf.weights.element_hash import signed64
from rlhf.weights.fingerprint import add, differences, fingerprint, group_of

DTYPES = [torch.float32, torch.bfloat16]


def matrix(seed: int = 0, rows: int = 12, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(rows, 8, generator=torch.Generator().manual_seed(seed)).to(dtype)


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
