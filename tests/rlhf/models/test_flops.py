"""FLOPs against PyTorch's counter, which counts the products that are computed, and by hand."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, MixtralConfig, PreTrainedModel

from rlhf.config.schema import LoRAConfig
from rlhf.models.flops import ModelFlops
from rlhf.models.lora import add_adapters
from tests.rlhf.tiny import ARCHITECTURES, VOCABULARY, tiny_model


def counted(model: PreTrainedModel, tokens: int, backward: bool = False) -> int:
    """FLOPs of a pass over one sequence by PyTorch's counter, which counts the whole square of attention."""
    model.set_attn_implementation("eager")  # whose products are seen, where a fused kernel's may not be
    with FlopCounterMode(display=False) as counter:
        logits = model(torch.arange(tokens)[None] % VOCABULARY, use_cache=False).logits
        if backward:
            logits.sum().backward()
    return counter.get_total_flops()


def flops_of(model: PreTrainedModel) -> ModelFlops:
    return ModelFlops.of(model, lambda tensor: tuple(tensor.shape))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_pass_costs_what_pytorch_counts(architecture: str) -> None:
    """One token sees itself alone, so that the causal half is the square. Of seven tokens the square has 49 pairs, and
    28 are seen; two layers of two heads 32 wide."""
    model = tiny_model(AutoModelForCausalLM, architecture)
    flops = flops_of(model)
    assert flops.forward([1], 1) == counted(model, 1)
    assert flops.forward([7], 7) == counted(model, 7) - 2 * 4 * 64 * (49 - 28)
    assert flops.forward([7, 1, 1], 9) == flops.forward([7], 7) + 2 * flops.forward([1], 1)
    assert flops.training([1], 1) == counted(model, 1, backward=True)  # all is trained: three times a forward pass


def test_the_head_is_used_for_predicted_tokens_alone() -> None:
    flops = flops_of(tiny_model(AutoModelForCausalLM, "llama"))
    assert flops.forward([7], 7) - flops.forward([7], 3) == 2 * 4 * 64 * VOCABULARY
    classifier = flops_of(tiny_model(AutoModelForSequenceClassification, "llama", num_labels=1))
    assert classifier.forward([7], 7) == flops.forward([7], 0) + 2 * 7 * 64  # its head of one label is in the body


def test_of_frozen_matrices_only_the_gradient_of_the_input_counts() -> None:
    """Rank 4 on two square matrices of each of two layers: A and B are 4 · 64 each, trained: 3 times 2 FLOPs; the rest
    twice."""
    model = tiny_model(AutoModelForCausalLM, "gpt_neox")
    plain = flops_of(model)
    add_adapters(model, LoRAConfig(rank=4, targets=("dense",)), seed=0)
    adapted = flops_of(model)
    added = 2 * (4 * 64 + 4 * 64)
    assert adapted.body_trained == added
    attention = 2 * 4 * 64 * 28
    frozen = 4 * plain.body * 7 + 4 * plain.head * 5
    assert adapted.training([7], 5) == frozen + 6 * added * 7 + 3 * attention
    assert adapted.forward([7], 5) == plain.forward([7], 5) + 2 * added * 7


def test_a_window_bounds_what_a_token_sees() -> None:
    """Of six tokens with a window of 3: 1 + 2 + 3 + 3 + 3 + 3 = 15 pairs, of 21."""
    shared = {"body": 0.0, "body_trained": 0.0, "head": 0.0, "head_trained": 0.0}
    assert ModelFlops(**shared, attention=((64, 3),)).forward([6], 0) == 4 * 64 * 15
    assert ModelFlops(**shared, attention=((64, None),)).forward([6], 0) == 4 * 64 * 21
    assert ModelFlops(**shared, attention=((64, 8),)).forward([6, 2], 0) == 4 * 64 * (21 + 3)


def test_of_experts_those_count_that_see_a_token() -> None:
    """Two of four experts, three matrices of 64 · 96 each; the router sees all; q, o 64 · 64, k, v 64 · 32."""
    config = MixtralConfig(
        vocab_size=VOCABULARY,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        num_local_experts=4,
        num_experts_per_tok=2,
    )
    flops = flops_of(AutoModelForCausalLM.from_config(config))
    assert flops.body == 2 * 3 * 64 * 96 + 4 * 64 + 2 * 64 * 64 + 2 * 64 * 32
    assert flops.head == VOCABULARY * 64


def test_layers_without_attention_have_none() -> None:
    model = tiny_model(AutoModelForCausalLM, "llama")
    model.config.layer_types = ["full_attention", "linear_attention"]
    assert flops_of(model).attention == ((64, None),)
    model.config.layer_types, model.config.sliding_window = ["sliding_attention", "full_attention"], 5
    assert flops_of(model).attention == ((64, 5), (64, None))


def test_the_whole_of_a_shard_counts() -> None:
    model = tiny_model(AutoModelForCausalLM, "llama")
    doubled = ModelFlops.of(model, lambda tensor: (2 * tensor.shape[0], *tensor.shape[1:]))
    assert doubled.body == 2 * flops_of(model).body
    assert isinstance(model.get_output_embeddings(), nn.Linear) and doubled.head == 2 * flops_of(model).head
