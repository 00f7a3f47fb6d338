"""Small transformers of several families whose next-token distribution is exactly the one that a problem asks for.

The body is random and everything is trainable; only embeddings and output head are chosen, so that the logits are what
they must be.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
)

Family = Literal["llama", "qwen2", "gpt2", "gpt_neox"]

NEVER = -1000.0
"""Logit, about, of a token that must not be sampled: its probability is exactly 0 in float32."""
END, PAD = ".", "_"
WIDTH, LAYERS, HEADS = 64, 2, 2


def make_tokenizer(letters: str, end: str = END) -> PreTrainedTokenizerFast:
    """One token a letter, with ids in the order given; the end token is among them, the padding token comes last.

    A byte-level BPE without merges: transformers rebuilds the tokenizers of some families (Qwen2, GPT-2) as such, from
    the vocabulary alone, not on the folder.
    """
    vocabulary = {letter: i for i, letter in enumerate([*letters, PAD])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token=PAD, eos_token=end)


def make_model(family: Family, tokenizer: PreTrainedTokenizerFast, spoken: int, seed: int) -> PreTrainedModel:
    """A random model that samples the first ``spoken`` tokens with equal probability, and never another.

    The first dimension of every embedding is large beside what the layers add to it, so that it stays positive in the
    last hidden state while the model learns: through it the other tokens' logits are kept near ``NEVER``.
    """
    torch.manual_seed(seed)
    config = _config(family, len(tokenizer), tokenizer.eos_token_id, tokenizer.pad_token_id)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa").eval()
    with torch.no_grad():
        embedding, head = model.get_input_embeddings().weight, model.get_output_embeddings().weight
        embedding.normal_()
        if family == "gpt2":
            model.transformer.wpe.weight.normal_()  # where a token is counts as much as which one it is
        embedding[:, 0] = 12.0
        head.zero_()
        head[spoken:, 0] = NEVER / 6.5  # the dimension is about 6.5 after the last normalisation
        if family in ("gpt2", "gpt_neox"):
            head[spoken:, 0], head[spoken:, 1] = 0.0, NEVER
            _make_constant(model)
    return model


def _config(family: Family, vocabulary: int, eos: int, pad: int) -> PreTrainedConfig:
    shared: dict[str, Any] = {
        "vocab_size": vocabulary,
        "bos_token_id": None,
        "eos_token_id": eos,
        "pad_token_id": pad,
        "tie_word_embeddings": False,
    }
    if family == "gpt2":
        return GPT2Config(**shared, n_embd=WIDTH, n_layer=LAYERS, n_head=HEADS, n_positions=64)
    sizes = {"hidden_size": WIDTH, "intermediate_size": 2 * WIDTH, "max_position_embeddings": 64}
    sizes |= {"num_hidden_layers": LAYERS, "num_attention_heads": HEADS}
    if family == "gpt_neox":
        return GPTNeoXConfig(**shared, **sizes)
    kind = Qwen2Config if family == "qwen2" else LlamaConfig
    return kind(**shared, **sizes, num_key_value_heads=HEADS)


def give_logits(
    model: PreTrainedModel, prompts: Tensor, logits: Tensor, body: PreTrainedModel | None = None, noise: float = 0.0
) -> None:
    """Choose the head so that the token after each one-token prompt (n,) has these logits (n, spoken).

    Args:
        body: computes the hidden states, if not ``model`` itself.
        noise: size of random weights that these states do not reach. They let the logits of a head that is not trained
            go wherever the states lead them.
    """
    with torch.no_grad():
        body = body or model
        hidden = body.base_model(prompts[:, None], use_cache=False).last_hidden_state[:, 0].double()
        start = noise * torch.randn(hidden.shape[1], logits.shape[1], dtype=torch.double)
        solution = start + torch.linalg.pinv(hidden) @ (logits.double() - hidden @ start)
        model.get_output_embeddings().weight[: logits.shape[1]] = solution.T.float()


def give_constant_logits(model: PreTrainedModel, logits: Tensor) -> None:
    """Choose the head so that every state has these logits (spoken,).

    For families whose final normalisation has a bias (GPT-2, GPT-NeoX).
    """
    with torch.no_grad():
        _make_constant(model)
        model.get_output_embeddings().weight[: len(logits), 1] = logits.float()


def _make_constant(model: PreTrainedModel) -> None:
    """Make the second dimension of the last hidden state the constant 1, by the final normalisation's bias."""
    norm = model.transformer.ln_f if hasattr(model, "transformer") else model.gpt_neox.final_layer_norm
    norm.weight[1], norm.bias[1] = 0.0, 1.0


def end_at(model: PreTrainedModel, position: int, end: int) -> None:
    """Make ``end`` certain after the token at ``position``, and impossible elsewhere.

    For GPT-2, whose position embeddings say in one dimension whether this is the place.
    """
    positions, embedding = model.transformer.wpe.weight, model.get_input_embeddings().weight
    with torch.no_grad():
        embedding[:, 2], positions[:, 2], positions[position, 2] = 0.0, -12.0, 12.0
        model.get_output_embeddings().weight[end] = 0.0
        model.get_output_embeddings().weight[end, 2] = -NEVER / 4


def save(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Write both in Hugging Face format."""
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
