from __future__ import annotations

import json
from pathlib import Path

from transformers import AutoModelForCausalLM

from rlhf.models.ends import differing_ends, end_tokens
from rlhf.models.scratch import train_tokenizer
from tests.rlhf.tiny import tiny_model


def test_end_tokens_by_who_names_them(tmp_path: Path) -> None:
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


def test_a_difference_is_said_and_one_set_is_not() -> None:
    assert differing_ends({"tokenizer": [2], "generation_config.json": [], "config.json": [2]}) == ""
    said = differing_ends({"tokenizer": [3], "generation_config.json": [1, 2, 3], "config.json": [3]})
    assert said.startswith("end tokens differ: tokenizer 3; generation_config.json 1, 2, 3; config.json 3")
