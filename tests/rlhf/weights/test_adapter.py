"""The fingerprint of an adapter is the same as it is sent and as an engine keeps it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from rlhf.weights.adapter import AdapterWeights
from rlhf.weights.fingerprint import fingerprint

QKV = [f"model.layers.3.self_attn.{x}_proj" for x in "qkv"]


def random(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


def adapter(dtype: torch.dtype, alpha: float) -> AdapterWeights:
    a = {name: random(3, 8 + i).to(dtype) for i, name in enumerate([*QKV, "model.layers.4.mlp.down_proj"])}
    b = {name: random(6 + i, 3).to(dtype) for i, name in enumerate(a)}
    return AdapterWeights(a=a, b=b, rank=3, alpha=alpha)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_fused_padded_and_scaled_tensors_have_the_fingerprint_of_those_that_were_sent(dtype: torch.dtype) -> None:
    """As vLLM keeps them: B times alpha/rank = 5/3, both padded to rank 8, q, k and v under one name."""
    sent, kept = adapter(dtype, alpha=5.0), []
    for name in sent.a:
        a, b = torch.zeros(8, sent.a[name].shape[1], dtype=dtype), torch.zeros(len(sent.b[name]), 8, dtype=dtype)
        a[:3] = sent.a[name]
        b[:, :3] = sent.b[name]
        b *= 5 / 3
        kept += [("model.layers.3.self_attn.qkv_proj" if name in QKV else name, tensor) for tensor in (a, b)]
    expected = {f"adapter of {group}": value for group, value in fingerprint(kept).items()}
    assert list(expected) == ["adapter of layers.3", "adapter of layers.4"]
    assert sent.fingerprint == expected


def test_the_scale_and_every_number_count() -> None:
    one = adapter(torch.float32, alpha=5.0)
    assert adapter(torch.float32, alpha=6.0).fingerprint != one.fingerprint
    other = adapter(torch.float32, alpha=5.0)
    other.b[QKV[1]][0, 0] += 1e-6
    differing = {group for group, value in one.fingerprint.items() if other.fingerprint[group] != value}
    assert differing == {"adapter of layers.3"}


def test_a_layer_of_zeros_counts_as_none() -> None:
    """vLLM has room for adapters of layers that get none."""
    nothing = AdapterWeights(a={"lm_head": torch.zeros(3, 4)}, b={"lm_head": torch.zeros(5, 3)}, rank=3, alpha=3.0)
    assert nothing.fingerprint == {}


def test_copies_travel_under_the_names_of_peft() -> None:
    """vLLM scales B in place; the sent tensors stay."""
    sent = adapter(torch.float32, alpha=5.0)
    before = sent.fingerprint
    tensors = sent.peft_tensors()
    assert set(tensors) >= {f"base_model.model.{QKV[0]}.lora_{x}.weight" for x in "AB"}
    assert len(tensors) == 2 * len(sent.a)
    for tensor in tensors.values():
        tensor *= 2
    assert sent.fingerprint == before
