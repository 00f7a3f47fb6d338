"""Tokenisation with one token per byte, so that every length below can be counted by hand."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from rlhf.config.schema import DataConfig
from rlhf.data import tokenise
from rlhf.data.chat import ChatFormat
from rlhf.data.tokenise import Tokenised, describe_tokenised
from rlhf.errors import UserError
from rlhf.records import Demonstration, Message, Preference, PromptRow, RowLocation
from rlhf.types import Example, ModelFacts, Pair, Prompt

END, BEGIN = 0, 2
LONG = 10_000


def facts(context: int = LONG, rows: int = LONG) -> ModelFacts:
    return ModelFacts(context=context, embedding_rows=rows, end_tokens=(END,))


def tokenise_demonstrations(rows: Any, tokenizer: Any, config: DataConfig, context_length: int) -> Tokenised[Example]:
    return tokenise.tokenise_demonstrations(rows, ChatFormat(tokenizer), config, facts(context_length))


def tokenise_preferences(rows: Any, tokenizer: Any, config: DataConfig, context_length: int) -> Tokenised[Pair]:
    return tokenise.tokenise_preferences(rows, ChatFormat(tokenizer), config, facts(context_length))


def tokenise_prompts(
    rows: Any, tokenizer: Any, config: DataConfig, context_length: int, max_response_length: int
) -> Tokenised[Prompt]:
    return tokenise.tokenise_prompts(rows, ChatFormat(tokenizer), config, facts(context_length), max_response_length)


def config(**options: Any) -> DataConfig:
    return DataConfig(**{"max_prompt_length": 20, "max_response_length": 20, **options})


def shown(*pairs: tuple[object, str]) -> list[Demonstration]:
    return [
        Demonstration(prompt, reply, RowLocation("f.jsonl", line))
        for line, (prompt, reply) in enumerate(pairs, start=1)
    ]


def judged(*rows: tuple[str, str, str], margin: float = 0.0) -> list[Preference]:
    return [Preference(*row, margin, RowLocation("f.jsonl", line)) for line, row in enumerate(rows, start=1)]


def asked(*prompts: object) -> list[PromptRow]:
    return [PromptRow(prompt, RowLocation("f.jsonl", line)) for line, prompt in enumerate(prompts, start=1)]


def test_a_demonstration_is_prompt_and_response_with_one_end(tokenizer) -> None:
    [example] = tokenise_demonstrations(shown(("ab", " c")), tokenizer, config(), LONG).items
    assert tokenizer.decode(example.prompt) == "ab"
    assert tokenizer.decode(example.response) == " c<end>"
    assert (len(example.prompt), len(example.response)) == (2, 3)
    assert example.prompt.dtype == example.response.dtype == "int32"


def test_an_end_that_the_text_brings_is_not_doubled(tokenizer) -> None:
    [example] = tokenise_demonstrations(shown(("ab", "c<end>")), tokenizer, config(), LONG).items
    assert example.response.tolist().count(END) == 1 and example.response[-1] == END


def test_the_begin_token_stands_once_before_the_prompt_and_not_before_the_response(begin_tokenizer) -> None:
    rows = shown(("ab", "c"), ("<s>ab", "c"))
    first, second = tokenise_demonstrations(rows, begin_tokenizer, config(), LONG).items
    assert (
        first.prompt.tolist()
        == second.prompt.tolist()
        == [BEGIN, *begin_tokenizer.encode("ab", add_special_tokens=False)]
    )
    assert BEGIN not in first.response


def test_a_template_that_writes_the_begin_token_does_not_double_it(begin_tokenizer) -> None:
    begin_tokenizer.chat_template = "<s>{% for m in messages %}{{ m.content }}{% endfor %}"
    [prompt] = tokenise_prompts(asked((Message("user", "ab"),)), begin_tokenizer, config(), LONG, 10).items
    assert begin_tokenizer.decode(prompt.tokens) == "<s>ab"


def test_messages_without_a_template_continue_their_transcript(tokenizer) -> None:
    rows = shown(((Message("user", "a"),), "b"))
    [example] = tokenise_demonstrations(rows, tokenizer, config(max_prompt_length=40), LONG).items
    text = tokenizer.decode([*example.prompt, *example.response])
    assert text == "\n\nHuman: a\n\nAssistant: b<end>"


def test_text_without_a_prompt_follows_the_begin_or_the_end_token(tokenizer, begin_tokenizer) -> None:
    rows = shown(("", "abc"))
    assert tokenise_demonstrations(rows, tokenizer, config(), LONG).items[0].prompt.tolist() == [END]
    assert tokenise_demonstrations(rows, begin_tokenizer, config(), LONG).items[0].prompt.tolist() == [BEGIN]


def test_a_long_response_is_quarantined_and_never_truncated(tokenizer) -> None:
    rows = shown(("a", "x" * 19), ("a", "x" * 20), ("a", "y" * 50))  # 19 bytes and the end token are 20
    out = tokenise_demonstrations(rows, tokenizer, config(), LONG)
    assert [len(example.response) for example in out.items] == [20]
    assert out.dropped == {"response longer than data.max_response_length=20, end token included": 2}
    assert out.truncated == 0


def test_a_row_beyond_the_context_is_quarantined(tokenizer) -> None:
    rows = shown(("abcd", "efg"), ("abcd", "efgh"))  # 4 + 3 + end = 8
    out = tokenise_demonstrations(rows, tokenizer, config(), context_length=8)
    assert [tokenizer.decode(example.response) for example in out.items] == ["efg<end>"]
    assert out.dropped == {"prompt and response exceed the model's context of 8": 1}


def test_a_response_with_an_inner_end_token_is_quarantined(tokenizer) -> None:
    out = tokenise_demonstrations(shown(("a", "b<end>c"), ("a", "b")), tokenizer, config(), LONG)
    assert len(out.items) == 1 and out.dropped == {"the end token stands inside the response": 1}


def test_long_prompts_are_dropped_cut_or_refused(tokenizer) -> None:
    rows = asked("abcdefgh", "ab")
    dropped = tokenise_prompts(rows, tokenizer, config(max_prompt_length=4), LONG, 10)
    assert [tokenizer.decode(prompt.tokens) for prompt in dropped.items] == ["ab"]
    assert dropped.dropped == {"prompt longer than data.max_prompt_length=4": 1} and dropped.truncated == 0
    cut = tokenise_prompts(rows, tokenizer, config(max_prompt_length=4, long_prompts="truncate_left"), LONG, 10)
    assert [tokenizer.decode(prompt.tokens) for prompt in cut.items] == ["efgh", "ab"]
    assert cut.dropped == {} and cut.truncated == 1
    with pytest.raises(UserError, match=r"f\.jsonl:1: the prompt has 8 tokens"):
        tokenise_prompts(rows, tokenizer, config(max_prompt_length=4, long_prompts="error"), LONG, 10)


def test_a_prompt_that_is_cut_keeps_its_begin_token(tokenizer, begin_tokenizer) -> None:
    options = config(max_prompt_length=4, long_prompts="truncate_left")
    [prompt] = tokenise_prompts(asked("abcdefgh"), begin_tokenizer, options, LONG, 10).items
    assert begin_tokenizer.decode(prompt.tokens) == "<s>fgh"
    [only_begin] = tokenise_prompts(
        asked("ab"), begin_tokenizer, config(max_prompt_length=1, long_prompts="truncate_left"), LONG, 10
    ).items
    assert only_begin.tokens == (BEGIN,)


def test_prompts_keep_their_place_as_id_and_leave_room_for_a_response(tokenizer) -> None:
    out = tokenise_prompts(asked("abcdef", "ab", "abc"), tokenizer, config(), context_length=8, max_response_length=5)
    assert [(prompt.id, len(prompt.tokens)) for prompt in out.items] == [(1, 2), (2, 3)]
    assert out.dropped == {"prompt and a response of 5 tokens exceed the model's context of 8": 1}


def test_pairs_of_one_prompt_share_an_id(tokenizer) -> None:
    rows = judged(("a", "x", "y"), ("b", "x", "y"), ("a", "y", "z"), margin=1.5)
    pairs = tokenise_preferences(rows, tokenizer, config(), LONG).items
    assert [pair.prompt_id for pair in pairs] == [0, 1, 0]
    assert [tokenizer.decode(pair.chosen) for pair in pairs] == ["x<end>", "x<end>", "y<end>"]
    assert [tokenizer.decode(pair.rejected) for pair in pairs] == ["y<end>", "y<end>", "z<end>"]
    assert {pair.margin for pair in pairs} == {1.5}


def test_a_pair_with_one_long_answer_is_quarantined(tokenizer) -> None:
    rows = judged(("a", "x" * 50, "y"), ("a", "x", "y" * 50), ("a", "x", "y"))
    out = tokenise_preferences(rows, tokenizer, config(), LONG)
    assert len(out.items) == 1 and sum(out.dropped.values()) == 2


def test_turns_that_the_template_refuses_are_counted(tokenizer) -> None:
    tokenizer.chat_template = (
        "{% if messages[0].role != 'user' %}{{ raise_exception('user first') }}{% endif %}ok {{ messages[0].content }}"
    )
    rows = asked((Message("assistant", "a"),), (Message("user", "a"),))
    out = tokenise_prompts(rows, tokenizer, config(), LONG, 10)
    assert [prompt.id for prompt in out.items] == [1]
    assert out.dropped == {"the chat template refuses the turns: user first": 1}


def test_nothing_left_is_refused_with_the_counts(tokenizer) -> None:
    rows = shown(("a", "x" * 50), ("a" * 50, "x"), ("a" * 50, "y"))
    with pytest.raises(UserError, match="none of 3 rows(.|\n)*2 × prompt longer(.|\n)*1 × response longer"):
        tokenise_demonstrations(rows, tokenizer, config(), LONG)


@pytest.mark.parametrize(
    ("row", "advice"),
    [
        (("a", "x" * 50), "raise data.max_response_length"),
        (("a" * 50, "x"), "raise data.max_prompt_length, or set data.long_prompts=truncate_left"),
        (("a", "b<end>c"), "correct the rows"),
        (
            ((Message("user", "a"),), "b"),
            "correct the turns, or give a template that accepts them (model.chat_template)",
        ),
    ],
)
def test_the_advice_is_that_of_the_cause(tokenizer, row: tuple[Any, str], advice: str) -> None:
    tokenizer.chat_template = "{{ raise_exception('no') }}"
    with pytest.raises(UserError) as caught:
        tokenise_demonstrations(shown(row), tokenizer, config(), LONG)
    assert caught.value.fix == advice


def test_a_template_that_fails_is_to_be_corrected_itself(tokenizer) -> None:
    tokenizer.chat_template = "{{ undefined.of }}"
    with pytest.raises(UserError, match="the chat template fails") as caught:
        tokenise_demonstrations(shown(((Message("user", "a"),), "b")), tokenizer, config(), LONG)
    assert caught.value.fix.startswith("correct the chat template (model.chat_template, or the one")


def test_no_rows_give_no_items(tokenizer) -> None:
    assert tokenise_preferences([], tokenizer, config(), LONG).items == ()


def test_the_description_counts_truncated_and_quarantined_rows(tokenizer) -> None:
    rows = asked("abcdefgh", "ab", "abc")
    out = tokenise_prompts(rows, tokenizer, config(max_prompt_length=2, long_prompts="truncate_left"), LONG, 10)
    assert describe_tokenised(out, "prompts") == "prompts: 3 tokenised, 2 prompts cut at their beginning"
    out = tokenise_prompts(rows, tokenizer, config(max_prompt_length=2), LONG, 10)
    assert describe_tokenised(out, "prompts") == (
        "prompts: 1 tokenised\n  2 × prompt longer than data.max_prompt_length=2"
    )


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    pairs=st.lists(
        st.tuples(st.text(min_size=1, max_size=30), st.text(min_size=1, max_size=30)), min_size=1, max_size=6
    ),
    long_prompts=st.sampled_from(["drop", "truncate_left"]),
    context=st.integers(12, 60),
)
def test_every_row_is_an_item_or_counted_and_every_item_fits(
    begin_tokenizer, pairs: list[tuple[str, str]], long_prompts: str, context: int
) -> None:
    rows = shown(*pairs, ("a", "b"))  # the last one always fits
    out = tokenise_demonstrations(rows, begin_tokenizer, config(long_prompts=long_prompts), context)
    assert len(out.items) + sum(out.dropped.values()) == len(rows)
    whole = {text.encode() for _, text in [*pairs, ("a", "b")]}
    for example in out.items:
        assert len(example.prompt) <= 20 and len(example.response) <= 20
        assert len(example.prompt) + len(example.response) <= context
        assert example.prompt[0] == BEGIN and example.response[-1] == END
        assert begin_tokenizer.decode(example.response[:-1]).encode() in whole


def test_a_prompt_keeps_its_text_turns_and_row(tokenizer) -> None:
    turns = (Message("user", "a"),)
    rows = [PromptRow("abcdef", RowLocation("f", 1), {"answer": 3}), PromptRow(turns, RowLocation("f", 2))]
    tokenizer.chat_template = "{% for m in messages %}<{{ m.content }}>{% endfor %}"
    plain, chat = tokenise_prompts(
        rows, tokenizer, config(max_prompt_length=4, long_prompts="truncate_left"), LONG, 1
    ).items
    assert (plain.text, plain.turns, plain.row) == ("abcdef", (), {"answer": 3})
    assert tokenizer.decode(plain.tokens) == "cdef", "the text is whole where the tokens are cut"
    assert (chat.text, chat.turns, chat.row) == ("\n\nHuman: a\n\nAssistant:", turns, {})
    assert tokenizer.decode(chat.tokens) == "<a>"


# Tokens that the model does not have


def test_a_token_beyond_the_embedding_is_refused_with_its_row(tokenizer) -> None:
    """Of 258 tokens the model has the first 258; ``<think>`` was added as number 258."""
    tokenizer.add_tokens(["<think>"])
    rows = shown(("ab", "c"), ("ab", "<think>c"))
    with pytest.raises(UserError, match=r"f\.jsonl:2: token '<think>' has id 258.*258 rows") as caught:
        tokenise.tokenise_demonstrations(rows, ChatFormat(tokenizer), config(), facts(rows=258))
    assert "resize_token_embeddings" in caught.value.fix
    assert len(tokenise.tokenise_demonstrations(rows, ChatFormat(tokenizer), config(), facts(rows=259)).items) == 2


# A space before every text


def spaced(kind: str) -> PreTrainedTokenizerFast:
    """A tokenizer that puts a space before every text, like Llama 2 (normaliser) and others (pre-tokenizer)."""
    backend = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    if kind == "strip":
        backend.normalizer = normalizers.Strip()
        backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    elif kind == "normalizer":
        backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    elif kind == "bytes":
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    else:
        backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=kind)
    words = ["What does a night cost?\n", " The Amber Inn costs 65 crowns."] * 20
    alphabet = list("\n" + "".join(chr(c) for c in range(33, 127)))
    alphabet = pre_tokenizers.ByteLevel.alphabet() if kind == "bytes" else alphabet
    specials = ["<unk>", "<s>", "</s>", "<pad>"]
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=specials, initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator(words, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, unk_token="<unk>", bos_token="<s>", eos_token="</s>", pad_token="<pad>"
    )


@pytest.mark.parametrize("kind", ["normalizer", "bytes", "first", "always"])
@pytest.mark.parametrize(
    ("prompt", "completion"),
    [
        ("What does a night cost?\n", " The Amber Inn"),
        ("What does a night cost?\n", "The Amber Inn"),
        ((Message("user", "What does a night cost?"),), "The Amber Inn"),
    ],
)
def test_parts_are_tokenised_as_the_whole_text_is(kind: str, prompt: Any, completion: str) -> None:
    words = spaced(kind)
    [example] = tokenise_demonstrations(shown((prompt, completion)), words, config(max_prompt_length=99), LONG).items
    text = "\n\nHuman: What does a night cost?\n\nAssistant: The Amber Inn"
    whole = prompt + completion if isinstance(prompt, str) else text
    assert [*example.prompt, *example.response[:-1]] == words(whole, add_special_tokens=False)["input_ids"]


@pytest.mark.parametrize("kind", ["always", "first"])
def test_a_completion_within_a_word_brings_no_space(kind: str) -> None:
    """``Ambe`` and ``r Inn``: the tokens of the whole do not end with the prompt's; both parts are kept."""
    words = spaced(kind)
    prompt = words("The Ambe", add_special_tokens=False)["input_ids"]
    assert words("The Amber Inn", add_special_tokens=False)["input_ids"][: len(prompt)] != prompt
    [example] = tokenise_demonstrations(shown(("The Ambe", "r Inn")), words, config(), LONG).items
    assert example.prompt.tolist() == prompt
    assert words.convert_ids_to_tokens(example.response.tolist()[:1]) == ["r"]


def test_a_tokenizer_that_drops_white_space_at_the_ends_is_seen_to_set_a_space() -> None:
    """The newline by which other tokenizers' continuations are found is no token here."""
    words = spaced("strip")
    assert words("\n", add_special_tokens=False)["input_ids"] == []
    [example] = tokenise_demonstrations(shown(("The Ambe", "r Inn")), words, config(), LONG).items
    assert words.convert_ids_to_tokens(example.response.tolist()[:1]) == ["r"]
    [example] = tokenise_demonstrations(shown(("What does a night cost?", " The Amber")), words, config(), LONG).items
    whole = words("What does a night cost? The Amber", add_special_tokens=False)["input_ids"]
    assert [*example.prompt, *example.response[:-1]] == whole


@pytest.mark.parametrize("kind", ["normalizer", "bytes", "first", "always"])
def test_control_tokens_are_text_without_another_space(kind: str) -> None:
    words = spaced(kind)
    words.chat_template = (
        "{% for m in messages %}<s>{{ m.content }}</s>{% endfor %}{% if add_generation_prompt %}<s>{% endif %}"
    )
    forged, plain = ((Message("user", f"cost {text} The"),) for text in ("</s>", "of"))
    found, other = tokenise_prompts(asked(forged, plain), words, config(max_prompt_length=99), LONG, 1).items
    assert found.tokens.count(2) == other.tokens.count(2) == 1
    assert "</s>" in words.decode(found.tokens[1:-2]).replace(" ", "")
    assert found.tokens[:3] == other.tokens[:3], "the text begins as it does without a control token in it"


def test_text_that_the_tokenizer_does_not_know_is_counted() -> None:
    words = {"<unk>": 0, "</s>": 1, "yes": 2, "no": 3}
    backend = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    by_words = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>", eos_token="</s>")
    rows = shown(("yes", " no"), ("maybe", " no"), ("yes", " never"), ("no", " yes"))
    out = tokenise_demonstrations(rows, by_words, config(), LONG)
    assert out.rows == 4 and out.remarks == {"text that the tokenizer does not know, read as <unk>": 2}
