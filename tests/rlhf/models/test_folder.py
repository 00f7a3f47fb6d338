"""Facts of a model's folder: its tokenizer's padding, its context, its end tokens, and its template's date."""

from __future__ import annotations

import json
import re
from datetime import date
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM

from rlhf.config.schema import ModelConfig
from rlhf.data.chat import ChatFormat
from rlhf.errors import UserError
from rlhf.models.folder import (
    context_length,
    differing_ends,
    end_tokens,
    load_chat,
    load_tokenizer,
    prepare_tokenizer,
    read_facts,
    settings_ends,
)
from rlhf.models.scratch import train_tokenizer
from rlhf.records import Message
from tests.rlhf.data.conftest import byte_tokenizer
from tests.rlhf.tiny import tiny_config, tiny_model


@pytest.fixture
def make_tokenizer():
    return byte_tokenizer


def test_a_tokenizer_without_an_end_token_is_refused(make_tokenizer) -> None:
    with pytest.raises(UserError, match="no end token(.|\n)*eos_token"):
        prepare_tokenizer(make_tokenizer("<pad>", pad_token="<pad>"))


@pytest.mark.parametrize(
    ("specials", "declared", "pad"),
    [
        (("<end>", "<mine>"), {"pad_token": "<mine>"}, "<mine>"),  # a declared one is kept
        (("<end>", "<|padding|>", "<unk>"), {"unk_token": "<unk>"}, "<|padding|>"),  # a known one that is not declared
        (("<end>", "<unk>"), {"unk_token": "<unk>", "pad_token": "<end>"}, "<unk>"),  # padding must not be the end
        (("<end>",), {"unk_token": "<end>"}, None),  # nothing fits: no token is made that the model does not know
        (("<end>",), {"pad_token": "<end>"}, "<end>"),  # nor is the padding taken away
    ],
)
def test_the_padding_token_is_never_the_end_token(
    make_tokenizer, specials: tuple[str, ...], declared: dict[str, str], pad: str | None
) -> None:
    tokenizer = make_tokenizer(*specials, eos_token="<end>", **declared)
    vocabulary = len(tokenizer)
    prepare_tokenizer(tokenizer)
    assert tokenizer.pad_token == pad
    assert len(tokenizer) == vocabulary


def test_padding_beyond_the_embedding_is_not_used(make_tokenizer) -> None:
    """Of 257 tokens and a padding token added later, a model with 257 rows has only the first 257."""
    tokenizer = make_tokenizer("<end>", eos_token="<end>")
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    assert tokenizer.pad_token_id == 257
    prepare_tokenizer(tokenizer, embedding_rows=258)
    assert tokenizer.pad_token == "[PAD]"
    prepare_tokenizer(tokenizer, embedding_rows=257)
    assert tokenizer.pad_token is None


SEVERAL = ("<|begin|>", "<|text|>", "<|eom|>", "<|eot|>", "<pad>")
ENDS_WITH_EOT = (
    "{% for m in messages %}[{{ m.role }}]\n{{ m.content }}<|eot|>{% endfor %}"
    "{% if add_generation_prompt %}[assistant]\n{% endif %}"
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Settings and tokenizer of a model that names end tokens in three places, one of them outside its embedding."""
    tokenizer = byte_tokenizer(*SEVERAL, eos_token="<|text|>", pad_token="<pad>")
    tokenizer.chat_template = ENDS_WITH_EOT
    tokenizer.save_pretrained(tmp_path)
    tiny_config("llama", vocab_size=261, eos_token_id=1).save_pretrained(tmp_path)
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [1, 2, 261]}))
    return tmp_path


def test_facts_are_of_all_settings(folder: Path) -> None:
    facts = read_facts(folder, ModelConfig())
    assert (facts.context, facts.embedding_rows, facts.end_tokens) == (64, 261, (1, 2))


def test_the_context_is_read_by_any_of_its_names(tmp_path: Path) -> None:
    for settings in ({"model_type": "mpt", "max_seq_len": 96}, {"model_type": "gpt2", "n_positions": 80}):
        (tmp_path / "config.json").write_text(json.dumps(settings))
        assert context_length(tmp_path, ModelConfig()) == [*settings.values()][1]
    text = {"model_type": "gemma3_text", "max_position_embeddings": 72}
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gemma3", "text_config": text}))
    assert context_length(tmp_path, ModelConfig()) == 72


def test_a_class_default_is_no_end_token(folder: Path) -> None:
    """Llama's class has a default of 2, which the file does not state: there it is an ordinary token."""
    (folder / "generation_config.json").unlink()
    settings = json.loads((folder / "config.json").read_text())
    del settings["eos_token_id"]
    (folder / "config.json").write_text(json.dumps(settings))
    assert read_facts(folder, ModelConfig()).end_tokens == (1,)


def test_the_templates_own_end_is_one_of_the_ends(folder: Path) -> None:
    chat = load_chat(folder, ModelConfig())
    assert chat.end == 3 and chat.ends == {1, 2, 3}


def test_the_facts_of_a_folder_without_settings_are_the_users_mistake(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot load the settings from"):
        read_facts(tmp_path, ModelConfig())


def test_a_quantised_model_is_refused(tmp_path: Path) -> None:
    tiny_config("llama", quantization_config={"quant_method": "gptq", "bits": 4}).save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"is quantised \(gptq\)"):
        context_length(tmp_path, ModelConfig())


DATED = "{% for m in messages %}{{ strftime_now('%d %b %Y') }}|{{ m.content }}{% endfor %}"


def test_a_template_always_gets_the_same_date(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    tokenizer = load_tokenizer(folder, ModelConfig())
    tokenizer.chat_template = DATED
    tokenizer.save_pretrained(folder)
    first = load_tokenizer(folder, ModelConfig(), day=date(2026, 2, 3))
    turns = (Message("user", "hi"),)
    assert ChatFormat(first).prompt(turns, {}).prompt == "03 Feb 2026|hi"
    later = tmp_path_factory.mktemp("saved")
    first.save_pretrained(later)
    again = load_tokenizer(later, ModelConfig(), day=date(2030, 1, 1))
    assert ChatFormat(again).prompt(turns, {}).prompt == "03 Feb 2026|hi", "a model is prompted as it was trained"


def test_a_byte_order_mark_of_a_template_is_dropped(folder: Path, tmp_path: Path) -> None:
    template = tmp_path / "chat.jinja"
    template.write_bytes(b"\xef\xbb\xbf{{ messages[0].content }}")
    chat = ChatFormat(load_tokenizer(folder, ModelConfig(chat_template=str(template))))
    assert chat.prompt((Message("user", "hi"),), {}).prompt == "hi"


def test_a_byte_order_mark_of_the_folders_own_template_is_dropped(folder: Path, tmp_path: Path) -> None:
    load_tokenizer(folder, ModelConfig()).save_pretrained(tmp_path)
    (tmp_path / "chat_template.jinja").write_bytes(b"\xef\xbb\xbf{{ messages[0].content }}")
    chat = ChatFormat(load_tokenizer(tmp_path, ModelConfig()))
    assert chat.prompt((Message("user", "hi"),), {}).prompt == "hi"


@pytest.mark.parametrize("content", [b"", b"\n \n", b"\xef\xbb\xbf"])
def test_an_empty_template_is_refused(folder: Path, tmp_path: Path, content: bytes) -> None:
    template = tmp_path / "chat.jinja"
    template.write_bytes(content)
    with pytest.raises(UserError, match=r"model\.chat_template: .*chat\.jinja is empty") as caught:
        load_tokenizer(folder, ModelConfig(chat_template=str(template)))
    assert "model.chat_template=null" in caught.value.fix


def test_end_tokens_by_source(tmp_path: Path) -> None:
    tokenizer = train_tokenizer([], 258)
    tiny_model(AutoModelForCausalLM, "llama", eos_token_id=[2, 1]).save_pretrained(tmp_path)
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": 3}))
    found = end_tokens(tokenizer, tmp_path)
    assert found == {
        "tokenizer": [tokenizer.eos_token_id],
        "generation_config.json": [3],
        "config.json": [1, 2],
    }
    (tmp_path / "generation_config.json").unlink()
    assert end_tokens(tokenizer, tmp_path)["generation_config.json"] == []


def test_only_differing_end_tokens_are_reported() -> None:
    assert differing_ends({"tokenizer": [2], "generation_config.json": [], "config.json": [2]}) == ""
    warning = differing_ends({"tokenizer": [3], "generation_config.json": [1, 2, 3], "config.json": [3]})
    assert warning.startswith("end tokens differ: tokenizer 3; generation_config.json 1, 2, 3; config.json 3")


@pytest.mark.parametrize(
    ("written", "message"),
    [
        ("{", "generation_config.json cannot be read"),
        ("[]", "generation_config.json cannot be read"),
        ('{"eos_token_id": "</s>"}', "eos_token_id has '</s>'"),
        ('{"eos_token_id": [1, -1]}', "eos_token_id has -1"),
        ('{"eos_token_id": true}', "eos_token_id has True"),
        ('{"eos_token_id": 2.5}', "eos_token_id has 2.5"),
    ],
)
def test_settings_that_name_no_tokens_are_refused(tmp_path: Path, written: str, message: str) -> None:
    (tmp_path / "generation_config.json").write_text(written)
    with pytest.raises(UserError, match=re.escape(message)):
        settings_ends(tmp_path)
