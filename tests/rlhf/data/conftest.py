"""Fixtures of the data tests: small tokenizers, files of rows, and the real data where it exists."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

SHARED = Path(__file__).parents[4] / "shared" / "data"
Write = Callable[..., str]


def byte_tokenizer(*specials: str, begin: str | None = None, **declared: str) -> PreTrainedTokenizerFast:
    """Byte-level BPE without merges: one token per byte after the special tokens, so that lengths can be counted."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=len(specials) + 256, special_tokens=list(specials), initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator([], trainer)
    if begin:
        pairs = [(begin, specials.index(begin))]
        backend.post_processor = processors.TemplateProcessing(single=f"{begin} $A", special_tokens=pairs)
    return PreTrainedTokenizerFast(tokenizer_object=backend, **declared)


@pytest.fixture
def make_tokenizer() -> Callable[..., PreTrainedTokenizerFast]:
    """``byte_tokenizer``, for tests with other special tokens."""
    return byte_tokenizer


@pytest.fixture
def tokenizer() -> PreTrainedTokenizerFast:
    """No begin token; end token 0."""
    return byte_tokenizer("<end>", "<pad>", eos_token="<end>", pad_token="<pad>")


@pytest.fixture
def begin_tokenizer() -> PreTrainedTokenizerFast:
    """Puts the begin token 2 before every text; end token 0."""
    return byte_tokenizer("<end>", "<pad>", "<s>", begin="<s>", eos_token="<end>", pad_token="<pad>", bos_token="<s>")


@pytest.fixture
def write_jsonl(tmp_path: Path) -> Write:
    """Write rows (objects, or raw lines); returns the file's path."""

    def write(*rows: object, name: str = "rows.jsonl") -> str:
        lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
        (tmp_path / name).write_text("\n".join(lines) + "\n", encoding="utf-8")
        return str(tmp_path / name)

    return write


@pytest.fixture
def shared_file() -> Callable[[str], str]:
    """Path of a file of the real data, which exists beside the repository on some machines only."""

    def find(name: str) -> str:
        if not (SHARED / name).exists():
            pytest.skip(f"the real data file {name} is not beside this repository")
        return str(SHARED / name)

    return find
