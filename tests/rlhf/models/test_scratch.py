from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rlhf.config.schema import ModelConfig, ScratchConfig
from rlhf.models.folder import context_length, load_tokenizer
from rlhf.models.load import load_causal
from rlhf.models.scratch import EOS, PAD, make_scratch, train_tokenizer

TEXTS = ["The hotel by the river is cheap.", "The museum opens at ten.", "Is the hotel near the museum?"] * 4
CONFIG = ScratchConfig(hidden_size=64, layers=1, heads=2, intermediate_size=96, vocab_size=300, max_length=48)
TOKENIZER = train_tokenizer(TEXTS, 300)


@given(st.text(max_size=40).filter(lambda text: PAD not in text and EOS not in text))
def test_any_text_comes_back_as_it_was(text: str) -> None:
    tokens = TOKENIZER.encode(text, add_special_tokens=False)
    assert TOKENIZER.decode(tokens, clean_up_tokenization_spaces=False) == text
    assert not {TOKENIZER.pad_token_id, TOKENIZER.eos_token_id} & set(tokens)


def test_the_tokenizer_has_learnt_its_text_within_its_vocabulary() -> None:
    assert 258 < len(TOKENIZER) <= 300  # 256 bytes, pad, end, and merges
    assert len(TOKENIZER.encode(TEXTS[0])) < len(TEXTS[0]) / 1.5


def test_pad_and_end_are_different_single_tokens() -> None:
    assert TOKENIZER.pad_token_id != TOKENIZER.eos_token_id
    assert TOKENIZER.encode(f"ten.{EOS}")[-1] == TOKENIZER.eos_token_id


@pytest.mark.parametrize("tied", [True, False])
def test_a_scratch_model_loads_as_any_other(tied: bool, tmp_path: Path) -> None:
    make_scratch(ScratchConfig(**{**vars(CONFIG), "tie_embeddings": tied}), TEXTS, tmp_path, seed=1)
    model, tokenizer = load_causal(tmp_path, ModelConfig()), load_tokenizer(tmp_path, ModelConfig())
    text = "  The hotel\n\tby  the river, near the café"
    assert tokenizer.encode(text) == TOKENIZER.encode(text)
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert model.config.vocab_size == len(tokenizer)
    assert model.config.eos_token_id == tokenizer.eos_token_id
    assert context_length(tmp_path, ModelConfig()) == tokenizer.model_max_length == 48
    assert (model.lm_head.weight.data_ptr() == model.model.embed_tokens.weight.data_ptr()) is tied


def test_the_seed_decides_the_weights(tmp_path: Path) -> None:
    def head(seed: int, name: str) -> torch.Tensor:
        make_scratch(CONFIG, TEXTS, tmp_path / name, seed)
        return load_causal(tmp_path / name, ModelConfig()).lm_head.weight

    assert torch.equal(head(1, "a"), head(1, "b"))
    assert not torch.equal(head(1, "a"), head(2, "c"))
