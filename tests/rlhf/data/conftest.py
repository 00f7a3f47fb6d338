"""What the data tests share: a tokenizer small enough to reason about, files of rows, and the real data where it is."""

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
    """Byte-level BPE that has learnt no merge: one token a byte after the special tokens, so lengths can be counted."""
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
    """``byte_tokenizer``, for tests of tokenizers that declare their special tokens otherwise."""
    return byte_tokenizer


@pytest.fixture
def tokenizer() -> PreTrainedTokenizerFast:
    """No begin token; end token 0."""
    return byte_tokenizer("<end>", "<pad>", eos_token="<end>", pad_token="<pad>")


@pytest.fixture
def begin_tokenizer() -> PreTrainedTokenizerFast:
    """Sets the begin token 2 before every text; end token 0."""
    return byte_tokenizer("<end>", "<pad>", "<s>", begin="<s>", eos_token="<end>", pad_token="<pad>", bos_token="<s>")


@pytest.fixture
def write_jsonl(tmp_path: Path) -> Write:
    """Write rows (objects, or lines as they are) and return the file's path."""

    def write(*rows: object, name: str = "rows.jsonl") -> str:
        lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
        (tmp_path / name).write_text("\n".join(lines) + "\n", encoding="utf-8")
        return str(tmp_path / name)

    return write


@pytest.fixture
def shared_file() -> Callable[[str], str]:
    """Path of a file of the real data, which stands beside the repository on some machines only."""

    def find(name: str) -> str:
        if not (SHARED / name).exists():
            pytest.skip(f"the real data file {name} is not beside this repository")
        return str(SHARED / name)

    return find
