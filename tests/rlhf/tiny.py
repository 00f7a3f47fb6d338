"""Small random models of every architecture that the tests hold the packed forward pass to, and random sequences."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from transformers import GPT2Config, GPTNeoXConfig, LlamaConfig, PreTrainedConfig, PreTrainedModel, Qwen2Config

from rlhf.types import Sequences

VOCABULARY = 61
ARCHITECTURES = ("llama", "qwen2", "gpt_neox", "gpt2")


def tiny_config(architecture: str, **changes: Any) -> PreTrainedConfig:
    """Two layers, two heads 32 wide; Qwen2 and GPT-2 with tied embeddings."""
    tokens = {"vocab_size": VOCABULARY, "bos_token_id": None, "eos_token_id": 1, "pad_token_id": None}
    sizes = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 2}
    shared = {**tokens, **sizes, "max_position_embeddings": 64}
    if architecture == "gpt2":
        return GPT2Config(**{**tokens, "n_embd": 64, "n_layer": 2, "n_head": 2, "n_positions": 64, **changes})
    if architecture == "gpt_neox":
        return GPTNeoXConfig(**{**shared, **changes})
    if architecture == "qwen2":
        return Qwen2Config(**{**shared, "num_key_value_heads": 2, "tie_word_embeddings": True, **changes})
    return LlamaConfig(**{**shared, "num_key_value_heads": 1, **changes})


def tiny_model(auto: Any, architecture: str, **changes: Any) -> PreTrainedModel:
    """A model by ``auto`` (a transformers Auto class) whose random weights are large enough to matter."""
    torch.manual_seed(0)
    model = auto.from_config(tiny_config(architecture, **changes), attn_implementation="sdpa").eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def random_sequences(*sizes: tuple[int, int], seed: int = 0) -> Sequences:
    """Random tokens with these (prompt, response) lengths."""
    random = np.random.default_rng(seed)
    return Sequences.pack(
        (random.integers(0, VOCABULARY, p).astype(np.int32), random.integers(0, VOCABULARY, r).astype(np.int32))
        for p, r in sizes
    )


def whole(sequences: Sequences, i: int) -> torch.Tensor:
    """(1, N_i) prompt and response of one sample, as a model takes them without packing."""
    return torch.tensor([[*sequences.prompt(i), *sequences.response(i)]], dtype=torch.long)
