"""Sources of shapes: a folder, the hub cache, the table."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from launch.plan.public import find_shape, public_shapes
from rlhf.errors import UserError
from tests.launch.plan.public_models import MODELS, count
from tests.rlhf.tiny import tiny_config


def save_config(folder: Path) -> None:
    tiny_config("llama", num_hidden_layers=7).save_pretrained(folder)


@pytest.mark.parametrize("name", MODELS)
def test_the_table_is_what_is_counted(name: str) -> None:
    assert public_shapes()[name] == count(name)


def test_the_table_has_no_other_model() -> None:
    assert [*public_shapes()] == [*MODELS]


def test_a_folder_wins_over_the_table(tmp_path: Path) -> None:
    save_config(tmp_path)
    assert find_shape(str(tmp_path)).layers == 7


def test_the_hub_cache_wins_over_the_table(tmp_path: Path) -> None:
    name = "Qwen/Qwen2.5-0.5B"
    snapshot = tmp_path / "hub" / "models--Qwen--Qwen2.5-0.5B" / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    assert find_shape(name, {"HF_HOME": str(tmp_path)}).layers == 24, "a snapshot without a config says nothing"
    save_config(snapshot)
    assert find_shape(name, {"HF_HOME": str(tmp_path)}).layers == 7
    assert find_shape(name, {"HF_HUB_CACHE": str(tmp_path / "hub")}).layers == 7


def test_an_instructed_model_has_the_shape_of_its_base() -> None:
    nowhere = {"HF_HOME": "/nowhere"}
    for name, base in (
        ("mistralai/Mistral-7B-Instruct-v0.1", "mistralai/Mistral-7B-v0.1"),
        ("meta-llama/Llama-3.1-8B-Instruct", "meta-llama/Llama-3.1-8B"),
        ("EleutherAI/pythia-12b-deduped", "EleutherAI/pythia-12b"),
    ):
        assert find_shape(name, nowhere) == replace(public_shapes()[base], name=name)
    with pytest.raises(UserError, match="is not known here"):
        find_shape("meta-llama/Llama-3.1-8B-Instructed", nowhere)


def test_an_unknown_name_is_told_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"did you mean meta-llama/Llama-3\.1-8B\?"):
        find_shape("meta-lama/Llama-3.1-8B", {"HF_HOME": str(tmp_path)})


@pytest.mark.parametrize("text", ["{", "[]", "\udcff"])
def test_a_config_that_is_none_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(UserError, match=r"config\.json"):
        find_shape(str(tmp_path))
