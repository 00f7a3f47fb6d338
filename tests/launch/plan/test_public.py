"""Sources of shapes: a folder, the hub cache, the table."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from launch.plan.public import PUBLIC, find_shape, public_config
from launch.plan.shapes import shape_of
from rlhf.errors import UserError
from tests.rlhf.tiny import tiny_config

CONFIG = {**tiny_config("llama").to_dict(), "num_hidden_layers": 7}


def test_every_row_of_the_table_is_a_shape() -> None:
    for name in PUBLIC:
        assert shape_of(public_config(name) or {}, name).parameters > 1e8


def test_a_folder_wins_over_the_table(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    assert find_shape(str(tmp_path)).layers == 7


def test_the_hub_cache_wins_over_the_table(tmp_path: Path) -> None:
    name = "Qwen/Qwen2.5-0.5B"
    snapshot = tmp_path / "hub" / "models--Qwen--Qwen2.5-0.5B" / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    assert find_shape(name, {"HF_HOME": str(tmp_path)}).layers == 24, "a snapshot without a config says nothing"
    (snapshot / "config.json").write_text(json.dumps(CONFIG))
    assert find_shape(name, {"HF_HOME": str(tmp_path)}).layers == 7
    assert find_shape(name, {"HF_HUB_CACHE": str(tmp_path / "hub")}).layers == 7


def test_an_instructed_model_has_the_shape_of_its_base() -> None:
    assert public_config("mistralai/Mistral-7B-Instruct-v0.1") == public_config("mistralai/Mistral-7B-v0.1")
    assert public_config("meta-llama/Llama-3.1-8B-Instruct") == public_config("meta-llama/Llama-3.1-8B")
    assert public_config("meta-llama/Llama-3.1-8B-Instructed") is None


def test_an_unknown_name_is_told_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"did you mean meta-llama/Llama-3\.1-8B\?"):
        find_shape("meta-lama/Llama-3.1-8B", {"HF_HOME": str(tmp_path)})


@pytest.mark.parametrize("text", ["{", "[]", "\udcff"])
def test_a_config_that_is_none_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(UserError, match=r"config\.json"):
        find_shape(str(tmp_path))
