"""Attention by sequence against transformers' eager attention, one sequence at a time."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModel, PreTrainedModel
from transformers.masking_utils import (
    bidirectional_mask_function,
    causal_mask_function,
    sliding_window_bidirectional_mask_function,
    sliding_window_causal_mask_function,
)

from rlhf import device
from rlhf.models import attention
from rlhf.models.attention import RowMask, by_sequence, use_row_attention
from rlhf.models.packed_row import Form, hidden_states, pack_row
from tests.rlhf.tiny import VOCABULARY, random_sequences, whole

SIZES = ((3, 9), (1, 1), (2, 10), (7, 5), (4, 3))
"""12, 2, 12, 12 and 7 tokens: longer and shorter than the windows below, equal neighbours and others."""
TOKENS = {"vocab_size": VOCABULARY, "bos_token_id": None, "eos_token_id": 1, "pad_token_id": 0}
SIZE = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 2}
HEADS = {"num_key_value_heads": 1, "head_dim": 32, "max_position_embeddings": 64}


@dataclass(frozen=True)
class Case:
    """An architecture with a peculiarity in its attention."""

    config: str
    changes: dict[str, Any] = field(default_factory=dict)


CASES = {
    "fewer heads of keys": Case("LlamaConfig"),
    "a sliding window": Case("MistralConfig", {"sliding_window": 4}),
    "windows in some layers": Case(
        "Qwen2Config", {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1}
    ),
    "scores bounded by tanh": Case("Gemma2Config", {"sliding_window": 4, "query_pre_attn_scalar": 7}),
    "norms of queries, windows": Case(
        "Gemma3TextConfig", {"sliding_window": 4, "layer_types": ["sliding_attention", "full_attention"]}
    ),
    "sinks": Case("GptOssConfig", {"sliding_window": 4, "num_local_experts": 2, "num_experts_per_tok": 1}),
    "chunks": Case(
        "Llama4TextConfig",
        {
            "attention_chunk_size": 5,
            "num_local_experts": 2,
            "interleave_moe_layer_step": 2,
            "intermediate_size_mlp": 96,
        },
    ),
    "both directions": Case("ModernBertConfig", {"local_attention": 6, "global_attn_every_n_layers": 2}),
    "both directions, positions learnt": Case("BertConfig"),
}


def backbone(case: Case) -> PreTrainedModel:
    torch.manual_seed(0)
    made = getattr(transformers, case.config)
    config = made(**{**TOKENS, **SIZE, **HEADS, **case.changes})
    for name in vars(config):
        if "dropout" in name and isinstance(getattr(config, name), float):
            setattr(config, name, 0.0)
    model = AutoModel.from_config(config, attn_implementation="eager").eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def weighted(states: Tensor) -> Tensor:
    return (states * torch.linspace(-1, 2, states.numel()).view_as(states)).sum()


def gradients(model: nn.Module, loss: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("form", ["packed", "padded"])
@pytest.mark.parametrize("name", CASES)
def test_states_and_gradients_are_those_of_each_sequence_alone(name: str, form: Form) -> None:
    model, sequences = backbone(CASES[name]), random_sequences(*SIZES)
    alone = torch.cat([model(whole(sequences, i)).last_hidden_state[0] for i in range(len(SIZES))])
    expected = gradients(model, weighted(alone))
    assert use_row_attention(model)
    found = hidden_states(model, pack_row(sequences, range(len(SIZES)), "cpu"), form)
    torch.testing.assert_close(found, alone, rtol=1e-4, atol=2e-5)
    for parameter, gradient in gradients(model, weighted(found)).items():
        scale = float(expected[parameter].abs().max())
        torch.testing.assert_close(gradient, expected[parameter], rtol=1e-4, atol=2e-5 * max(1.0, scale), msg=parameter)


@pytest.mark.parametrize("rule", [causal_mask_function, sliding_window_causal_mask_function(4)])
def test_a_cpu_attends_in_float32_and_rounds_once(rule: Any) -> None:
    """bfloat16 rounds outputs and gradients of float64 to 8 bits. PyTorch's own kernel rounds probabilities too."""
    torch.manual_seed(0)
    rows = [torch.randn(1, 2, 36, 16).bfloat16().requires_grad_() for _ in range(3)]
    exact = [each.detach().double().requires_grad_() for each in rows]
    found, expected = (by_sequence(nn.Module(), *each, RowMask((12, 24), rule))[0] for each in (rows, exact))
    weighting = torch.randn(found.shape).bfloat16()
    found.backward(weighting)
    expected.backward(weighting.double())
    assert found.dtype == torch.bfloat16
    for one, other in [(found, expected), *((row.grad, other.grad) for row, other in zip(rows, exact, strict=True))]:
        assert one is not None and other is not None
        torch.testing.assert_close(one.double(), other, rtol=2**-8, atol=1e-5)


@pytest.mark.parametrize(
    ("dtype", "length", "multiplies", "found"),
    [
        (torch.bfloat16, 192, True, torch.float32),
        (torch.bfloat16, 193, True, torch.bfloat16),
        (torch.bfloat16, 193, False, torch.float32),
        (torch.float32, 193, False, torch.float32),
        (torch.float64, 8, False, torch.float64),
    ],
)
def test_the_faster_type_of_a_cpu(
    dtype: torch.dtype, length: int, multiplies: bool, found: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(device, "_multiplies_bfloat16", lambda: multiplies)
    assert device.attention_dtype(torch.zeros(1, dtype=dtype), length) == found
    assert device.attention_dtype(torch.zeros(1, dtype=dtype, device="meta"), length) == dtype


def test_it_costs_the_sum_of_squares() -> None:
    """Scores and values are 2 products of L² · D for each head: 4 · 3 · 32 · (100 · 8² + 1 · 200²) operations."""
    lengths = (200, *[8] * 100)
    query = torch.randn(1, 3, sum(lengths), 32)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:  # products that can be counted
        by_sequence(nn.Module(), query, query, query, RowMask(lengths, causal_mask_function))
    assert counter.get_total_flops() == 4 * 3 * 32 * (100 * 8**2 + 200**2)


def test_the_gradient_of_a_row_is_put_together_once() -> None:
    """A slice's gradient is a row of zeros but for the slice: one for each of 60 sequences would be 60 rows to add."""
    lengths = tuple(range(1, 61))
    rows = [torch.randn(1, 2, sum(lengths), 16, requires_grad=True) for _ in range(3)]
    output, _ = by_sequence(nn.Module(), *rows, RowMask(lengths, causal_mask_function))
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        output.sum().backward()
    allocated = sum(max(0, event.self_cpu_memory_usage) for event in seen.events())
    assert allocated < 30 * rows[0].nbytes, "it was 14, and 368 with slices"


def window(before: int, behind: int) -> Any:
    return lambda row, head, query, key: (key >= query - before) & (key <= query + behind)


def chunks(size: int) -> Any:
    return lambda row, head, query, key: (key <= query) & (key // size == query // size)


def test_a_rule_is_seen_over_one_sequence_as_if_it_stood_alone() -> None:
    bias = RowMask((3, 3), window(1, 0)).bias(3, torch.float32)
    assert (bias[0, 0] == 0).int().tolist() == [[1, 0, 0], [1, 1, 0], [0, 1, 1]]
    assert bias[0, 0, 0, 1] == -torch.inf


BANDS = {
    "causal": (causal_mask_function, (9, 3), (-1, 0)),
    "whole": (bidirectional_mask_function, (9, 3), (-1, -1)),
    "a window": (window(2, 0), (9, 3), (2, 0)),
    "a window of the token alone": (window(0, 0), (9,), (0, 0)),
    "a window as wide as the longest": (window(8, 0), (9, 3), (-1, 0)),
    "a window in both directions": (window(2, 3), (9,), (2, 3)),
    "written so by transformers": (sliding_window_causal_mask_function(4), (9,), (3, 0)),
    "in both directions": (sliding_window_bidirectional_mask_function(4), (9,), (4, 4)),
    "chunks": (chunks(5), (9,), None),
    "chunks whose last is whole": (chunks(3), (9,), None),
    "one chunk": (chunks(5), (5, 3), (-1, 0)),
    "a hole": (lambda row, head, query, key: (key <= query) & ((query != 4) | (key != 2)), (9,), None),
    "one token": (window(2, 0), (1,), (-1, -1)),
}
"""Rules, lengths, and the visible tokens before and after, as in ``varlen_attn``'s window; -1: all."""


@pytest.mark.parametrize("name", BANDS)
def test_windows_are_read_from_the_rule(name: str) -> None:
    rule, lengths, band = BANDS[name]
    assert RowMask(lengths, rule).band == band


def test_a_window_that_no_sequence_fills_needs_no_numbers() -> None:
    mask = RowMask((9, 3), window(2, 0))
    assert (mask.is_causal(9), mask.is_causal(3), mask.is_causal(1)) == (False, True, True)
    assert [RowMask((9,), window(2, 2)).is_full(length) for length in (9, 4, 3)] == [False, False, True]
    assert not RowMask((9,), chunks(5)).is_causal(9)
    assert not RowMask((9,), causal_mask_function).is_full(9)


def test_runs_of_equal_lengths_are_computed_at_once() -> None:
    assert RowMask((4, 4, 2, 4), causal_mask_function).runs == ((4, 2), (2, 1), (4, 1))


def test_outside_of_a_row_a_model_is_as_it_was() -> None:
    model, tokens = backbone(CASES["a sliding window"]), torch.arange(24).view(2, 12)
    with torch.no_grad():
        expected = model(tokens).last_hidden_state
        use_row_attention(model)
        torch.testing.assert_close(model(tokens).last_hidden_state, expected, rtol=1e-5, atol=1e-5)


def test_an_architecture_with_an_attention_of_its_own_keeps_it() -> None:
    config = transformers.GPTJConfig(**TOKENS, n_embd=64, n_layer=1, n_head=2, rotary_dim=8, n_positions=64)
    model = AutoModel.from_config(config)
    assert not use_row_attention(model)
    assert model.config._attn_implementation == "eager"


@pytest.mark.parametrize(
    ("capability", "widest"),
    [((7, 5), 0), ((8, 0), 256), ((8, 6), 192), ((8, 9), 192), ((9, 0), 256), ((12, 0), 192)],
)
def test_a_kernel_is_chosen_where_it_has_a_backward_pass(
    capability: tuple[int, int], widest: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PyTorch's ``sdp_utils.cpp``: FlashAttention needs 8.0, and trains no head above 192 on 8.6, 8.9 and 12.0."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert attention._widest_head.__wrapped__(torch.device("cuda")) == widest
