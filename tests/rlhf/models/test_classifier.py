"""Classifiers of any architecture against transformers' own forward pass on single sequences; refused folders."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from rlhf.config.schema import ModelConfig
from rlhf.errors import UserError
from rlhf.models.classifier import inspect_classifier, label_index, load_own, start_of_reward
from rlhf.models.classifier_probe import choose_reader, is_causal
from rlhf.models.load import load_causal, load_classifier
from rlhf.models.packed_row import pack_row
from rlhf.models.scalar import ScalarNet
from rlhf.models.scratch import train_tokenizer
from tests.rlhf.tiny import random_sequences, tiny_model, whole
from tests.rlhf.tiny_classifiers import DECODERS, ENCODERS, tiny_classifier

CPU = torch.device("cpu")
SEQUENCES = random_sequences((3, 5), (1, 4), (6, 1), (9, 20))
EVERY = range(len(SEQUENCES))
OVER_PADDED = ("bloom",)
"""Decoders whose attention transformers does not allow to replace."""


def alone(classifier: PreTrainedModel, label: int = 0) -> Tensor:
    with torch.no_grad():
        return torch.stack([classifier(whole(SEQUENCES, i)).logits[0, label] for i in EVERY]).float()


def chosen(classifier: PreTrainedModel, label: int = 0) -> tuple[ScalarNet, Tensor]:
    """The network after its probe, and its scores."""
    net = ScalarNet(classifier.eval(), label)

    def run(*arguments: Any) -> Tensor:
        with torch.no_grad():
            return net(*arguments)

    choose_reader(net, is_causal(net, run, bool, CPU), run, bool, CPU)
    return net, run(pack_row(SEQUENCES, EVERY, CPU))


def reloaded(folder: Path, label: int | str | None = None) -> tuple[ScalarNet, Tensor]:
    found = inspect_classifier(folder, ModelConfig(), own=True)
    found.require_whole("key")
    return chosen(load_own(found, ModelConfig()), label_index(found, label, "key"))


def test_out_of_memory_is_not_evidence_about_attention() -> None:
    def fails_with(error: Exception) -> bool:
        def run(*arguments: Any) -> Tensor:
            raise error

        return is_causal(ScalarNet(tiny_classifier("llama"), 0), run, bool, CPU)

    assert not fails_with(IndexError("no such token"))
    with pytest.raises(torch.OutOfMemoryError):
        fails_with(torch.OutOfMemoryError("CUDA out of memory"))


@pytest.mark.parametrize("name", [*ENCODERS, *DECODERS])
def test_scores_are_those_of_the_classifiers_own_forward_pass(name: str, tmp_path: Path) -> None:
    classifier = tiny_classifier(name)
    classifier.save_pretrained(tmp_path)
    net, scores = reloaded(tmp_path)
    torch.testing.assert_close(scores, alone(classifier), rtol=1e-4, atol=1e-5)
    assert scores.std() > 0.02  # equal scores would prove nothing
    form = "padded" if name in (*ENCODERS, *OVER_PADDED) else "packed"
    assert (net.reader, net.form) == ("own" if name in ENCODERS else "head", form)


def test_a_heads_bias_is_kept_where_the_architecture_has_none(tmp_path: Path) -> None:
    classifier = tiny_classifier("mistral")
    classifier.score = nn.Linear(32, 1, bias=True)
    nn.init.constant_(classifier.score.bias, 7.0)
    classifier.save_pretrained(tmp_path / "made")
    net, scores = reloaded(tmp_path / "made")
    torch.testing.assert_close(scores, alone(classifier), rtol=1e-4, atol=1e-5)
    assert scores.mean() > 5
    net.classifier.save_pretrained(tmp_path / "again")
    torch.testing.assert_close(reloaded(tmp_path / "again")[1], scores)


def with_deep_head(name: str) -> PreTrainedModel:
    classifier = tiny_classifier(name)
    classifier.score = nn.Sequential(nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 1)).eval()
    return classifier


def test_a_head_of_several_layers_is_read_as_it_is(tmp_path: Path) -> None:
    expected = alone(with_deep_head("llama"))
    net, scores = chosen(with_deep_head("llama"))
    torch.testing.assert_close(scores, expected, rtol=1e-4, atol=1e-5)
    assert (net.reader, net.form) == ("head", "packed")
    with_deep_head("llama").save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"lacks score.weight \(it has score.0.bias, score.0.weight, "):
        reloaded(tmp_path)


def leak(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
    """Mix each token's embedding with that of the previous token in the row, as a convolution does."""
    return output + nn.functional.pad(output, (0, 0, 1, 0))[:, :-1]


def test_a_model_that_mixes_neighbours_of_a_row_is_given_a_row_a_sequence() -> None:
    classifier = tiny_classifier("llama")
    classifier.get_input_embeddings().register_forward_hook(leak)
    expected = alone(classifier)
    net, scores = chosen(classifier)
    assert (net.reader, net.form) == ("head", "padded")
    torch.testing.assert_close(scores, expected, rtol=1e-4, atol=1e-5)


def look_at_padding(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
    """Add the mean over the whole row, including padding."""
    return output + output.mean(dim=1, keepdim=True)


def test_an_encoder_that_looks_at_padding_is_given_one_sequence_at_a_time() -> None:
    classifier = tiny_classifier("bert")
    classifier.get_input_embeddings().register_forward_hook(look_at_padding)
    expected = alone(classifier)
    net, scores = chosen(classifier)
    assert net.reader == "own_alone"
    torch.testing.assert_close(scores, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["roberta", "llama"])
def test_the_head_computes_in_float32(name: str) -> None:
    classifier = tiny_classifier(name).to(torch.bfloat16)
    expected = alone(tiny_classifier(name))
    net, scores = chosen(classifier)
    assert net.reader == ("own" if name == "roberta" else "head")
    assert scores.dtype == torch.float32 and not torch.equal(scores, scores.to(torch.bfloat16).float())
    torch.testing.assert_close(scores, expected, rtol=0.1, atol=0.1)


def test_an_empty_row_has_no_scores_and_runs_all_of_an_encoder() -> None:
    net, _ = chosen(tiny_classifier("deberta_v2"))
    scores = net(pack_row(SEQUENCES, [], CPU))
    assert scores.shape == (0,)
    scores.sum().backward()  # the other ranks' collective calls have theirs beside them


@pytest.mark.parametrize(("name", "label", "index"), [("llama", 2, 2), ("bert", "good", 1)])
def test_of_several_labels_the_one_that_is_named_is_the_score(
    name: str, label: int | str, index: int, tmp_path: Path
) -> None:
    classifier = tiny_classifier(name, labels=3, id2label={0: "bad", 1: "good", 2: "other"})
    classifier.save_pretrained(tmp_path)
    _, scores = reloaded(tmp_path, label)
    torch.testing.assert_close(scores, alone(classifier, index), rtol=1e-4, atol=1e-5)
    with pytest.raises(UserError, match=r"3 labels[^;]*; the labels are 0 \(bad\), 1 \(good\), 2 \(other\)"):
        reloaded(tmp_path)
    for wrong in ("Good", 3, -1):
        with pytest.raises(UserError, match="no label of the model"):
            reloaded(tmp_path, wrong)
    with pytest.raises(UserError, match="3 labels"):
        start_of_reward(tmp_path, ModelConfig())


def changed(folder: Path, **tensors: Tensor | None) -> None:
    """Add tensors to the folder's weights, or remove them."""
    weights = load_file(folder / "model.safetensors")
    for name, tensor in tensors.items():
        weights.pop(name, None)
        if tensor is not None:
            weights[name] = tensor
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("name", "tensors", "named"),
    [
        ("llama", {"score.weight": None}, "lacks score.weight"),
        ("llama", {"score.weight": None, "v_head.weight": torch.zeros(1, 32)}, r"lacks score.weight \(it has v_head"),
        ("llama", {"model.layers.1.mlp.up_proj.weight": None}, "lacks model.layers.1.mlp.up_proj.weight"),
        ("llama", {"model.layers.2.mlp.up_proj.weight": torch.zeros(48, 32)}, "does not have model.layers.2.mlp.up"),
        ("llama", {"model.norm.weight": torch.zeros(31)}, "lacks model.norm.weight"),
        ("bert", {"bert.pooler.dense.bias": None}, "lacks bert.pooler.dense.bias"),
        ("roberta", {"classifier.dense.weight": None}, "lacks classifier.dense.weight"),
        ("deberta_v2", {"pooler.dense.weight": None, "classifier.bias": None}, "classifier.bias, pooler.dense.weight"),
    ],
)
def test_a_weight_that_is_missing_or_has_no_place_is_refused_by_name(
    name: str, tensors: dict[str, Tensor | None], named: str, tmp_path: Path
) -> None:
    tiny_classifier(name).save_pretrained(tmp_path)
    changed(tmp_path, **tensors)
    with pytest.raises(UserError, match=named):
        reloaded(tmp_path)
    with pytest.raises(UserError, match=named):  # neither is it a start for the reward stage
        start_of_reward(tmp_path, ModelConfig())


def test_heads_of_other_tasks_and_old_buffers_beside_the_classifier_are_no_matter(tmp_path: Path) -> None:
    classifier = tiny_classifier("llama")
    classifier.save_pretrained(tmp_path)
    old = {"lm_head.weight": torch.zeros(61, 32), "model.layers.0.self_attn.rotary_emb.inv_freq": torch.zeros(8)}
    changed(tmp_path, **old)
    torch.testing.assert_close(reloaded(tmp_path)[1], alone(classifier), rtol=1e-4, atol=1e-5)


def test_a_language_model_is_no_reward_model_but_becomes_one(tmp_path: Path) -> None:
    tiny_model(AutoModelForCausalLM, "llama").save_pretrained(tmp_path)
    train_tokenizer([], 258).save_pretrained(tmp_path)
    found = inspect_classifier(tmp_path, ModelConfig(), own=True)
    with pytest.raises(UserError, match=r"key = .* lacks score.weight \(it has lm_head.weight besides\)"):
        found.require_whole("key")
    assert not start_of_reward(tmp_path, ModelConfig()).has_head


def test_an_encoder_without_a_head_is_no_start(tmp_path: Path) -> None:
    tiny_classifier("roberta").roberta.save_pretrained(tmp_path)
    with pytest.raises(UserError, match="not one linear layer"):
        start_of_reward(tmp_path, ModelConfig())


@pytest.mark.parametrize("pad", [None, 61, -1, 1])
@pytest.mark.parametrize("load", [load_causal, load_classifier])
def test_no_padding_token_is_made_that_the_embedding_lacks_or_that_ends_responses(
    pad: int | None, load: Any, tmp_path: Path
) -> None:
    """The tokenizer's padding token is outside the embedding, as if it had been added later."""
    tiny_model(AutoModelForCausalLM, "llama").save_pretrained(tmp_path)
    tokenizer = train_tokenizer([], 258)
    tokenizer.add_special_tokens({"pad_token": "<new>"})
    tokenizer.save_pretrained(tmp_path)
    config = tmp_path / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "pad_token_id": pad}))
    model = load(tmp_path, ModelConfig())
    assert model.config.pad_token_id == (1 if pad == 1 and load is load_causal else None)
    model.save_pretrained(tmp_path / "again")
    assert model(torch.tensor([[3, 4]])).logits.isfinite().all()
