"""A small, randomly initialised Llama model, and a byte-level BPE tokenizer trained on the run's own text."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from rlhf.config.schema import ScratchConfig
from rlhf.storage.write_errors import writing

PAD, EOS = "<pad>", "<eos>"
LONGEST_PIECE = 10_000
"""Longest piece of text to train on, in characters: time grows with the square of the longest word, and text without
spaces is one word."""


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE tokenizer: it encodes any string without unknown tokens. Pad and end tokens differ."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[PAD, EOS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_split_long(texts), trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token=PAD, eos_token=EOS)


def _split_long(texts: Iterable[str]) -> Iterator[str]:
    """The texts, long ones split into pieces."""
    return (text[start : start + LONGEST_PIECE] for text in texts for start in range(0, len(text), LONGEST_PIECE))


def make_scratch(config: ScratchConfig, texts: Iterable[str], folder: Path, seed: int) -> None:
    """Write a randomly initialised model and its tokenizer to ``folder`` in Hugging Face format."""
    tokenizer = train_tokenizer(texts, config.vocab_size)
    tokenizer.model_max_length = config.max_length
    torch.manual_seed(seed)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=config.hidden_size,
            intermediate_size=config.intermediate_size,
            num_hidden_layers=config.layers,
            num_attention_heads=config.heads,
            num_key_value_heads=config.heads,
            max_position_embeddings=config.max_length,
            tie_word_embeddings=config.tie_embeddings,
            bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    with writing(folder / "model.safetensors"):
        model.save_pretrained(folder)
    with writing(folder / "tokenizer.json"):
        tokenizer.save_pretrained(folder)
