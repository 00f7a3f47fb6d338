from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM

from rlhf.errors import UserError
from rlhf.models.ends import differing_ends, end_tokens, settings_ends
from rlhf.models.scratch import train_tokenizer
from tests.rlhf.tiny import tiny_model


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
    said = differing_ends({"tokenizer": [3], "generation_config.json": [1, 2, 3], "config.json": [3]})
    assert said.startswith("end tokens differ: tokenizer 3; generation_config.json 1, 2, 3; config.json 3")


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
