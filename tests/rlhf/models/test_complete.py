"""Folders whose tensors differ from those of the model in their config.json."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from rlhf.config.schema import ModelConfig
from rlhf.errors import UserError
from rlhf.models.complete import check_complete, unused_tensors
from rlhf.models.load import load_causal, load_classifier
from rlhf.models.scratch import train_tokenizer
from tests.rlhf.tiny import tiny_model

Change = Callable[[dict[str, Tensor]], object]
QUERY, UP = "model.layers.0.self_attn.q_proj", "model.layers.1.mlp.up_proj.weight"
BEYOND = "model.layers.2.mlp.up_proj.weight"


def changed(folder: Path, change: Change, architecture: str = "llama") -> Path:
    """A causal model's folder whose tensors were modified by ``change``."""
    tiny_model(AutoModelForCausalLM, architecture).save_pretrained(folder)
    train_tokenizer([], 258).save_pretrained(folder)
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda t: t.pop(UP), f"lacks {UP}"),
        (lambda t: t.pop("lm_head.weight"), "lacks lm_head.weight"),
        (lambda t: t.update({UP: torch.ones(5, 64)}), f"has {UP} in other shapes"),
        (lambda t: t.update({f"{QUERY}.bias": torch.ones(64)}), f"has {QUERY}.bias, which its config.json does not"),
        (lambda t: t.update({BEYOND: t[UP].clone()}), f"has {BEYOND}, of layers beyond the number in its config.json"),
    ],
    ids=["missing", "no head", "shape", "bias", "one layer more"],
)
def test_a_policy_that_would_not_be_the_folders_is_refused(change: Change, expected: str, tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        load_causal(changed(tmp_path, change), ModelConfig())
    assert expected in caught.value.what and caught.value.fix


def test_of_many_missing_tensors_a_few_are_named(tmp_path: Path) -> None:
    def without_a_layer(tensors: dict[str, Tensor]) -> None:
        for name in [name for name in tensors if ".layers.1." in name]:
            del tensors[name]

    with pytest.raises(UserError, match="and 6 more tensors"):  # a layer of Llama has nine
        load_causal(changed(tmp_path, without_a_layer), ModelConfig())


def test_a_tied_head_is_not_missing(tmp_path: Path) -> None:
    folder = changed(tmp_path, lambda tensors: None, "qwen2")
    assert "lm_head.weight" not in load_file(folder / "model.safetensors")
    load_causal(folder, ModelConfig())


EMBEDDING = "model.embed_tokens.weight"


def test_a_tied_head_of_its_own_is_refused(tmp_path: Path) -> None:
    """transformers would keep the two apart, and an engine would drop the head."""
    folder = changed(tmp_path, lambda t: t.update({"lm_head.weight": t[EMBEDDING] + 1}), "qwen2")
    with pytest.raises(UserError, match="differs from its embedding") as caught:
        load_causal(folder, ModelConfig())
    assert "tie_word_embeddings" in caught.value.fix


def test_a_tied_head_of_its_own_is_found_in_the_files(tmp_path: Path) -> None:
    """Under ZeRO-3 transformers compares empty tensors, and ties what differs."""
    folder = changed(tmp_path, lambda t: t.update({"lm_head.weight": t[EMBEDDING].clone()}), "qwen2")
    model = load_causal(folder, ModelConfig())
    tensors = load_file(folder / "model.safetensors")
    tensors["lm_head.weight"][-1, -1] += 1
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    info = {"missing_keys": (), "mismatched_keys": (), "unexpected_keys": ()}
    with pytest.raises(UserError, match="differs from its embedding"):
        check_complete(folder, model, info, lambda name: True)


def test_a_tied_head_may_stand_in_the_checkpoint_too(tmp_path: Path) -> None:
    folder = changed(tmp_path, lambda t: t.update({"lm_head.weight": t[EMBEDDING].clone()}), "qwen2")
    model = load_causal(folder, ModelConfig())
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight


def test_a_reward_model_is_no_policy(tmp_path: Path) -> None:
    tiny_model(AutoModelForSequenceClassification, "llama", num_labels=1).save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"lacks lm_head\.weight"):
        load_causal(tmp_path, ModelConfig())


def test_what_belongs_to_no_layer_is_listed(tmp_path: Path) -> None:
    folder = changed(tmp_path, lambda tensors: tensors.update({"vision.patch.weight": torch.ones(3)}))
    assert unused_tensors(load_causal(folder, ModelConfig())) == ("vision.patch.weight",)
    assert unused_tensors(load_causal(changed(tmp_path / "whole", lambda tensors: None), ModelConfig())) == ()


def test_a_classifiers_backbone_must_be_whole_and_its_head_may_be_new(tmp_path: Path) -> None:
    load_classifier(changed(tmp_path / "whole", lambda tensors: None), ModelConfig())
    with pytest.raises(UserError, match=f"lacks {UP}"):
        load_classifier(changed(tmp_path / "broken", lambda tensors: tensors.pop(UP)), ModelConfig())
