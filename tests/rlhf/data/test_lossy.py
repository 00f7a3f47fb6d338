"""A tokenizer that loses text is refused, or its losses are reported."""

from __future__ import annotations

import pytest
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from rlhf.config.schema import DataConfig, Recipe
from rlhf.data import stages
from rlhf.data.chat import ChatFormat
from rlhf.data.lossy import remarks_on_lost_text, some_of
from rlhf.errors import UserError
from rlhf.types import ModelFacts
from tests.rlhf.data.conftest import Write, byte_tokenizer

TEXTS = ["What does a night cost at the Amber Inn?\n", "Sixty five crowns,\nand the café is free: ask for it."] * 3


def with_normalizer(normalizer: normalizers.Normalizer) -> PreTrainedTokenizerFast:
    made = byte_tokenizer("<end>", eos_token="<end>")
    made.backend_tokenizer.normalizer = normalizer
    return made


def by_words(*words: str) -> PreTrainedTokenizerFast:
    backend = Tokenizer(models.WordLevel({"<unk>": 0, "<end>": 1, **{w: i + 2 for i, w in enumerate(words)}}, "<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>", eos_token="<end>")


def without_decoder() -> PreTrainedTokenizerFast:
    """As loaded by another class: spaces are written as the byte's letter."""
    made = byte_tokenizer("<end>", eos_token="<end>")
    made.backend_tokenizer.decoder = decoders.Fuse()
    return made


@pytest.mark.parametrize(
    ("tokenizer", "expected"),
    [
        (byte_tokenizer("<end>", eos_token="<end>"), ()),
        (with_normalizer(normalizers.Lowercase()), ("the tokenizer writes all text in lower case",)),
        (
            with_normalizer(normalizers.Sequence([normalizers.NFD(), normalizers.StripAccents()])),
            ("the tokenizer changes letters, for example by dropping accents",),
        ),
        (with_normalizer(normalizers.Replace("\n", " ")), ("the tokenizer loses line breaks",)),
        (
            with_normalizer(normalizers.Replace(Regex(r"[?:.,]"), "")),
            ("the tokenizer loses 12 of 12 punctuation marks and symbols of 6 rows",),
        ),
        (
            with_normalizer(normalizers.Replace("Inn", "")),
            ("the tokenizer loses 3 of 60 words of 6 rows, such as 'inn'",),
        ),
    ],
)
def test_what_a_tokenizer_changes_is_reported(tokenizer: PreTrainedTokenizerFast, expected: tuple[str, ...]) -> None:
    assert remarks_on_lost_text(TEXTS, tokenizer) == expected


@pytest.mark.parametrize(
    ("tokenizer", "expected"),
    [
        (by_words("the", "a"), r"loses \d+ of \d+ words.*becomes '<unk>"),
        (with_normalizer(normalizers.Replace(Regex(r"[a-z]"), "")), r"loses \d+ of \d+ words"),
        (with_normalizer(normalizers.Replace(" ", "")), "loses the spaces between words"),
        (without_decoder(), "loses the spaces between words"),
    ],
)
def test_a_tokenizer_that_loses_most_text_is_refused(tokenizer: PreTrainedTokenizerFast, expected: str) -> None:
    with pytest.raises(UserError, match=expected) as caught:
        remarks_on_lost_text(TEXTS, tokenizer)
    assert "tokenizer_class" in caught.value.fix


@pytest.mark.parametrize(
    "text", ["你好，世界。今天天气很好。", "สวัสดีชาวโลก", "x = {'a': [1, 2]}\n\treturn", "🙂 <end> ok", ""]
)
def test_any_text_is_kept_by_bytes(text: str) -> None:
    assert remarks_on_lost_text([text], byte_tokenizer("<end>", eos_token="<end>")) == ()
    assert remarks_on_lost_text([], byte_tokenizer("<end>", eos_token="<end>")) == ()


def test_rows_are_chosen_evenly() -> None:
    assert list(some_of(range(1000)))[:3] == [0, 50, 100] and len(some_of(range(1000))) == 20
    assert list(some_of(range(3))) == [0, 1, 2]


def test_every_stage_examines_its_tokenizer(write_jsonl: Write) -> None:
    rows = [{"prompt": f"What does {i} cost? ", "chosen": "One Crown", "rejected": "It is fair"} for i in range(9)]
    recipe = Recipe(name="a", data=DataConfig(path=write_jsonl(*rows)))
    facts = ModelFacts(context=1000, embedding_rows=1000, end_tokens=(0,))
    lower, lost = (ChatFormat(made) for made in (with_normalizer(normalizers.Lowercase()), by_words("it")))
    for prepare in (stages.demonstrations, stages.preferences, stages.prompts):
        assert "  the tokenizer writes all text in lower case" in prepare(recipe, lower, facts).report.splitlines()
        with pytest.raises(UserError, match="the tokenizer loses"):
            prepare(recipe, lost, facts)
