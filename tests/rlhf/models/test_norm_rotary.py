"""Norms and rotations by formula: PyTorch's autograd in float64, complex numbers, and what stays transformers' own."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel
from transformers.models.llama import modeling_llama as llama

from rlhf.models.norm_rotary import use_formulas

EPSILON = 1e-3
"""Large enough to be seen in the results."""
TOKENS, HEADS, WIDTH = 5, 3, 8


def norm(width: int) -> nn.Module:
    torch.manual_seed(0)
    layer = llama.LlamaRMSNorm(width, eps=EPSILON)
    layer.weight.data.normal_()
    use_formulas(layer)
    return layer


@pytest.mark.parametrize("shape", [(1, 700, 48), (2, 9, 3, 16), (40, 8)])
def test_a_norm_and_its_gradients_equal_pytorch_in_float64(shape: tuple[int, ...]) -> None:
    layer = norm(shape[-1])
    x = (torch.randn(shape) * torch.logspace(-3, 2, shape[1])[:, *[None] * (len(shape) - 2)]).requires_grad_()
    weighting = torch.randn(shape)
    y = layer(x)
    (y * weighting).sum().backward()
    wide = [each.detach().double().requires_grad_() for each in (x, layer.weight)]
    expected = functional.rms_norm(wide[0], shape[-1:], wide[1], EPSILON)
    (expected * weighting.double()).sum().backward()
    pairs = ((y, expected), (x.grad, wide[0].grad), (layer.weight.grad, wide[1].grad))
    for found, known in pairs:
        assert found is not None and known is not None
        torch.testing.assert_close(found.double(), known, rtol=1e-5, atol=1e-5 * float(known.detach().abs().max()))


def test_a_norm_by_hand() -> None:
    """x = (3, 4), w = (1, 2), ε = 0: mean x² = 12.5, so y = (3, 8)/√12.5; of y₁, ∂x = (16, −12)/(25 √12.5)."""
    layer = llama.LlamaRMSNorm(2, eps=0.0)
    layer.weight.data = torch.tensor([1.0, 2.0])
    use_formulas(layer)
    x = torch.tensor([[3.0, 4.0]], requires_grad=True)
    y = layer(x)
    y[0, 0].backward()
    assert y.tolist()[0] == pytest.approx([3 / 12.5**0.5, 8 / 12.5**0.5])
    assert x.grad is not None and layer.weight.grad is not None
    assert x.grad.tolist()[0] == pytest.approx([16 / 25 / 12.5**0.5, -12 / 25 / 12.5**0.5])
    assert layer.weight.grad.tolist() == pytest.approx([3 / 12.5**0.5, 0])


def test_a_norm_has_transformers_own_bits() -> None:
    layer, x = norm(48), torch.randn(1, 700, 48)
    expected = llama.LlamaRMSNorm.forward(layer, x)
    assert torch.equal(layer(x), expected)
    with torch.no_grad():
        assert torch.equal(layer(x), expected)


def test_a_frozen_norm_gets_no_gradient_and_an_input_without_gradient_none() -> None:
    layer, x = norm(WIDTH), torch.randn(TOKENS, WIDTH, requires_grad=True)
    layer(x.detach()).sum().backward()
    of_weight = layer.weight.grad
    layer.weight.grad = None
    layer.requires_grad_(False)
    layer(x).sum().backward()
    assert x.grad is not None and of_weight is not None and layer.weight.grad is None


class Rotated(nn.Module):
    """An attention layer that only rotates; this module has the global names of Llama's."""

    def forward(self, q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, at: int) -> tuple[Tensor, Tensor]:
        return apply_rotary_pos_emb(q, k, cos, sin, unsqueeze_dim=at)


apply_rotary_pos_emb, rotate_half = llama.apply_rotary_pos_emb, llama.rotate_half


def rotated(*arguments: Any) -> tuple[Tensor, Tensor]:
    layer = Rotated()
    use_formulas(layer)
    assert "forward" in vars(layer)
    found: tuple[Tensor, Tensor] = layer(*arguments)
    return found


@pytest.mark.parametrize("at", [1, 2])
def test_a_rotation_is_a_product_of_complex_numbers(at: int) -> None:
    """(x₁ + i x₂) e^{iθ} for the halves x₁, x₂ of a head; the gradient is that of PyTorch's complex product."""
    torch.manual_seed(0)
    shape = (2, HEADS, TOKENS, WIDTH) if at == 1 else (2, TOKENS, HEADS, WIDTH)
    q, k = torch.randn(shape, requires_grad=True), torch.randn(shape, requires_grad=True)
    angles = torch.randn(2, TOKENS, WIDTH // 2, dtype=torch.float64)
    cos, sin = (torch.cat([each, each], dim=-1).float() for each in (angles.cos(), angles.sin()))
    weighting = torch.randn(2, *shape)
    found = rotated(q, k, cos, sin, at)
    (torch.stack(found) * weighting).sum().backward()
    turn = torch.polar(torch.ones_like(angles), angles).unsqueeze(at)
    for x, y, weights in zip((q, k), found, weighting, strict=True):
        wide = x.detach().double().requires_grad_()
        product = torch.complex(*wide.chunk(2, dim=-1)) * turn
        expected = torch.cat([product.real, product.imag], dim=-1)
        (expected * weights.double()).sum().backward()
        torch.testing.assert_close(y.double(), expected, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(x.grad.double(), wide.grad, rtol=1e-5, atol=1e-5)
    with torch.no_grad():
        assert all(map(torch.equal, rotated(q, k, cos, sin, at), found))


def test_the_gradient_of_a_rotation_whose_halves_have_other_angles_is_the_transposed_map() -> None:
    q, k = (torch.randn(1, HEADS, TOKENS, WIDTH, requires_grad=True) for _ in range(2))
    cos, sin = torch.randn(2, 1, TOKENS, WIDTH)
    weighting = torch.randn(2, *q.shape)
    (torch.stack(rotated(q, k, cos, sin, 1)) * weighting).sum().backward()
    wide = [each.detach().double().requires_grad_() for each in (q, k)]
    expected = torch.stack(llama.apply_rotary_pos_emb(*wide, cos.double(), sin.double()))
    (expected * weighting.double()).sum().backward()
    for x, known in zip((q, k), wide, strict=True):
        torch.testing.assert_close(x.grad.double(), known.grad, rtol=1e-5, atol=1e-5)


def model(architecture: str) -> PreTrainedModel:
    """Two layers, four heads, two key-value heads; weights large enough to matter."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}
    tokens = {"vocab_size": 61, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    config = AutoConfig.for_model(architecture, **sizes, **tokens, num_key_value_heads=2, head_dim=16)
    found = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    with torch.no_grad():
        for parameter in found.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return found


@pytest.mark.parametrize(
    ("architecture", "changed"),
    [
        ("llama", {"LlamaAttention", "LlamaRMSNorm"}),
        ("mistral", {"MistralAttention", "MistralRMSNorm"}),
        ("qwen2", {"Qwen2Attention", "Qwen2RMSNorm"}),
        ("qwen3", {"Qwen3Attention", "Qwen3RMSNorm"}),
        ("phi3", {"Phi3RMSNorm"}),
        ("gemma2", {"Gemma2Attention"}),
        ("gpt_neox", set()),
    ],
)
def test_whole_models_compute_what_transformers_computes(architecture: str, changed: set[str]) -> None:
    """Outputs have the same bits. Phi 3 rotates a part of each head, Gemma's norm multiplies by 1 + w, GPT-NeoX has
    neither.
    """
    own, plain = model(architecture), model(architecture)
    use_formulas(own)
    assert {type(each).__name__ for each in own.modules() if "forward" in vars(each)} == changed
    tokens = torch.randint(3, 61, (2, 12))
    logits, expected = (each(tokens, use_cache=False).logits for each in (own, plain))
    assert torch.equal(logits, expected)
    weighting = torch.randn_like(expected)
    for each in (logits, expected):
        (each * weighting).sum().backward()
    for found, known in zip(own.parameters(), plain.parameters(), strict=True):
        assert found.grad is not None and known.grad is not None
        torch.testing.assert_close(found.grad, known.grad, rtol=1e-3, atol=1e-4 * float(known.grad.abs().max()))


def test_bfloat16_is_left_to_transformers() -> None:
    own = model("llama").bfloat16()
    plain, tokens = deepcopy(own), torch.randint(3, 61, (2, 12))
    use_formulas(own)
    assert torch.equal(own(tokens, use_cache=False).logits, plain(tokens, use_cache=False).logits)


def test_nothing_outside_the_network_changes() -> None:
    before = llama.apply_rotary_pos_emb, llama.LlamaRMSNorm.forward, llama.LlamaAttention.forward
    use_formulas(model("llama"))
    assert before == (llama.apply_rotary_pos_emb, llama.LlamaRMSNorm.forward, llama.LlamaAttention.forward)


def test_what_others_have_replaced_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    """A norm with a forward pass of its own, and a rotation that another library has put into the module."""
    own = model("llama")
    first = own.model.layers[0].input_layernorm
    first.forward = lambda hidden_states: hidden_states
    monkeypatch.setattr(llama, "apply_rotary_pos_emb", lambda q, k, cos, sin: (q, k))
    use_formulas(own)
    x = torch.randn(1, 2, 64)
    assert first(x) is x
    assert not any("forward" in vars(layer.self_attn) for layer in own.model.layers)
    assert "forward" in vars(own.model.norm)
