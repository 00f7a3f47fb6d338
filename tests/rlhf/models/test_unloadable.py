"""Model folders as people have them: adapters, pickles, pointers, damaged and incomplete downloads."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM, T5Config

from rlhf.config.schema import ModelConfig
from rlhf.errors import UserError
from rlhf.models.folder import load_tokenizer
from rlhf.models.load import load_causal
from rlhf.models.scratch import train_tokenizer
from rlhf.models.unloadable import advise, require_weights
from tests.rlhf.tiny import tiny_model

WEIGHTS = "model.safetensors"
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n"


def only_adapters(folder: Path) -> None:
    (folder / "config.json").rename(folder / "adapter_config.json")


def cut(folder: Path) -> None:
    (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:-1000])


def damaged_index(folder: Path) -> None:
    (folder / WEIGHTS).unlink()
    (folder / f"{WEIGHTS}.index.json").write_text("{}")


def listed_and_absent(folder: Path) -> None:
    (folder / WEIGHTS).rename(folder / "model-00001-of-00002.safetensors")
    index = {"metadata": {}, "weight_map": {"lm_head.weight": "model-00002-of-00002.safetensors"}}
    (folder / f"{WEIGHTS}.index.json").write_text(json.dumps(index))


@pytest.mark.parametrize(
    ("change", "fix"),
    [
        (only_adapters, "merge them into the base model"),
        (lambda folder: (folder / WEIGHTS).rename(folder / "pytorch_model.bin"), "pytorch_model.bin is a pickle"),
        (lambda folder: (folder / WEIGHTS).write_text(POINTER), f"{WEIGHTS} is a pointer of Git LFS"),
        (lambda folder: (folder / WEIGHTS).unlink(), "has no weights"),
        (lambda folder: (folder / WEIGHTS).rename(folder / "model-00001-of-00001.safetensors"), "index.json is absent"),
        (cut, "damaged or incomplete"),
        (damaged_index, "has no weights"),
        (listed_and_absent, "model-00002-of-00002.safetensors is listed"),
        (lambda folder: T5Config(d_model=8).save_pretrained(folder), "decoder-only"),
    ],
    ids=["adapters", "pickle", "pointer", "no weights", "no index", "cut", "damaged index", "shard", "encoder-decoder"],
)
def test_a_folder_that_cannot_be_loaded_is_refused_with_its_remedy(
    change: Callable[[Path], object], fix: str, tmp_path: Path
) -> None:
    tiny_model(AutoModelForCausalLM, "llama").save_pretrained(tmp_path)
    change(tmp_path)
    with pytest.raises(UserError) as caught:
        load_causal(tmp_path, ModelConfig())
    assert fix in caught.value.fix


@pytest.mark.parametrize(
    ("change", "fix"),
    [
        (lambda folder: (folder / WEIGHTS).rename(folder / "pytorch_model.bin"), "pytorch_model.bin is a pickle"),
        (lambda folder: (folder / WEIGHTS).write_text(POINTER), f"{WEIGHTS} is a pointer of Git LFS"),
        (lambda folder: (folder / WEIGHTS).unlink(), "has no weights"),
        (damaged_index, "has no weights"),
        (listed_and_absent, "model-00002-of-00002.safetensors is listed"),
        (lambda folder: (folder / "training_args.bin").write_text("a pickle beside weights"), ""),
        (lambda folder: (folder / "picture.png").write_text(POINTER), ""),
    ],
    ids=["pickle", "pointer", "no weights", "damaged index", "shard", "a pickle beside weights", "another pointer"],
)
def test_missing_weights_are_found_without_loading(change: Callable[[Path], object], fix: str, tmp_path: Path) -> None:
    (tmp_path / WEIGHTS).touch()
    require_weights(tmp_path)
    change(tmp_path)
    if not fix:
        return require_weights(tmp_path)
    with pytest.raises(UserError, match="has no complete weights") as caught:
        require_weights(tmp_path)
    assert fix in caught.value.fix and str(tmp_path) in caught.value.what


def test_names_of_the_hub_and_folders_of_other_nodes_are_not_checked_here(tmp_path: Path) -> None:
    require_weights(Path("Qwen/Qwen2.5-0.5B"))
    require_weights(tmp_path / "elsewhere")


def test_a_folder_without_a_tokenizer_is_refused_with_its_remedy(tmp_path: Path) -> None:
    tiny_model(AutoModelForCausalLM, "llama").save_pretrained(tmp_path)
    with pytest.raises(UserError, match=re.escape("copy tokenizer.json")):
        load_tokenizer(tmp_path, ModelConfig())
    train_tokenizer([], 258).save_pretrained(tmp_path)
    load_tokenizer(tmp_path, ModelConfig())


CODE = {"config.json": {"auto_map": {"AutoConfig": "own.Config"}, "model_type": "of_its_own"}}


@pytest.mark.parametrize(
    ("files", "is_trusted", "is_named"),
    [
        (CODE, False, True),
        (CODE, True, False),
        ({"config.json": {"model_type": "of_its_own"}}, False, False),
        ({"config.json": {"auto_map": {"AutoModelForCausalLM": "own.Model"}, "model_type": "x"}}, False, True),
        ({"tokenizer_config.json": {"auto_map": {"AutoTokenizer": ["own.Tokenizer", None]}}}, False, True),
        ({"config.json": ["auto_map"]}, False, False),
    ],
)
def test_a_model_with_code_of_its_own_names_the_setting_and_its_risk(
    files: dict[str, object], is_trusted: bool, is_named: bool, tmp_path: Path
) -> None:
    for name, content in files.items():
        (tmp_path / name).write_text(json.dumps(content))
    (tmp_path / "own.py").write_text("raise ValueError('the code fails')\n")
    with pytest.raises(UserError) as caught:
        load_tokenizer(tmp_path, ModelConfig(trust_remote_code=is_trusted))
    fix = caught.value.fix
    assert ("model.trust_remote_code=true" in fix and "your permissions" in fix and "read" in fix) == is_named


def test_the_setting_is_named_for_a_hub_model_too() -> None:
    error = ValueError("Please pass the argument `trust_remote_code=True` to allow custom code to be run.")
    assert "model.trust_remote_code=true" in advise("owner/model", "AutoConfig", error)
    assert "model.trust_remote_code" not in advise("owner/model", "AutoConfig", error, is_trusted=True)
