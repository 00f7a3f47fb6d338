"""Settings that transformers reads and refuses to save."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM, GenerationConfig

from rlhf.config.schema import ModelConfig
from rlhf.errors import UserError
from rlhf.models.load import load_causal
from rlhf.models.saving import drop_idle_settings, try_saving, try_saving_tokenizer
from rlhf.models.scratch import train_tokenizer
from tests.rlhf.tiny import tiny_model


def with_settings(folder: Path, **settings: object) -> Path:
    tiny_model(AutoModelForCausalLM, "llama").save_pretrained(folder)
    (folder / "generation_config.json").write_text(json.dumps(settings))
    return folder


def test_settings_without_effect_are_left_out_and_the_rest_is_saved(tmp_path: Path) -> None:
    """A temperature beside ``do_sample: false``: transformers loads it, and refuses to save it."""
    settings = {"eos_token_id": [1, 5], "temperature": 0.6, "top_p": 0.9, "do_sample": False, "max_new_tokens": 7}
    model = load_causal(with_settings(tmp_path / "given", **settings), ModelConfig())
    with pytest.raises(ValueError, match="temperature"):
        model.save_pretrained(tmp_path / "before")
    [note] = try_saving(model)
    assert "temperature, top_p have no effect" in note
    model.save_pretrained(tmp_path / "after")
    kept = GenerationConfig.from_pretrained(tmp_path / "after")
    assert (kept.eos_token_id, kept.max_new_tokens, kept.do_sample) == ([1, 5], 7, False)
    assert kept.temperature in (None, 1.0) and kept.top_p in (None, 1.0)


@pytest.mark.parametrize(
    "settings",
    [{"do_sample": True, "temperature": 0.6, "top_p": 0.9}, {}, {"eos_token_id": 1}],
    ids=["sampling", "none", "end"],
)
def test_sound_settings_stay_as_they_are(settings: dict[str, object]) -> None:
    config = GenerationConfig(**settings)
    before = config.to_dict()
    assert drop_idle_settings(config) == ()
    assert config.to_dict() == before


def test_what_has_no_effect_beside_one_beam_is_left_out_too() -> None:
    config = GenerationConfig(length_penalty=2.0, early_stopping=True)
    [note] = drop_idle_settings(config)
    assert "early_stopping" in note and "length_penalty" in note


def test_settings_that_contradict_each_other_are_refused(tmp_path: Path) -> None:
    model = load_causal(with_settings(tmp_path), ModelConfig())
    model.generation_config.max_new_tokens = -1
    with pytest.raises(UserError, match="can be read and cannot be written") as caught:
        try_saving(model)
    assert "max_new_tokens" in caught.value.what and "generation_config.json" in caught.value.fix


def test_a_tokenizer_that_cannot_be_written_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = train_tokenizer([], 258)
    try_saving_tokenizer(tokenizer)

    def refuse(folder: str) -> None:
        raise NotImplementedError("no vocabulary file")

    monkeypatch.setattr(tokenizer, "save_pretrained", refuse)
    with pytest.raises(UserError, match="no vocabulary file"):
        try_saving_tokenizer(tokenizer)
