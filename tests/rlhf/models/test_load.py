from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from rlhf.config.schema import ModelConfig, OptimizerConfig, RoleConfig
from rlhf.errors import UserError
from rlhf.models.folder import context_length, load_tokenizer
from rlhf.models.load import (
    REWARD_SHIFT,
    load_causal,
    load_classifier,
    reward_shift,
)
from rlhf.models.packed_row import pack_row
from rlhf.models.policy import PolicyNet
from rlhf.models.scratch import train_tokenizer
from rlhf.zero.engine import ZeroEngine
from rlhf.zero.process_group import Rank, join
from tests.rlhf.ranks import Crew
from tests.rlhf.tiny import ARCHITECTURES, random_sequences, tiny_model

DROPOUT = {
    "llama": {"attention_dropout": 0.5},
    "qwen2": {"attention_dropout": 0.5},
    "gpt_neox": {"attention_dropout": 0.5, "hidden_dropout": 0.5, "classifier_dropout": 0.5},
    "gpt2": {"attn_pdrop": 0.5, "resid_pdrop": 0.5, "embd_pdrop": 0.5},
}
TOKENS = torch.tensor([[3, 14, 15, 9, 26, 5]])


def saved(folder: Path, architecture: str = "llama", **changes: Any) -> Path:
    """A folder with a tiny causal model and a tokenizer."""
    tiny_model(AutoModelForCausalLM, architecture, **changes).save_pretrained(folder)
    train_tokenizer([], 258).save_pretrained(folder)
    return folder


def varies_in_training(model: PreTrainedModel) -> bool:
    model.train()
    with torch.no_grad():
        return not torch.equal(model(TOKENS).logits, model(TOKENS).logits)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_dropout_is_off_although_the_folder_asks_for_it(architecture: str, tmp_path: Path) -> None:
    folder = saved(tmp_path, architecture, **DROPOUT[architecture])
    assert varies_in_training(AutoModelForCausalLM.from_pretrained(folder))
    assert not varies_in_training(load_causal(folder, ModelConfig()))
    assert not varies_in_training(load_classifier(folder, ModelConfig()))


@pytest.mark.parametrize(("dtype", "expected"), [("float32", torch.float32), ("bfloat16", torch.bfloat16)])
def test_the_dtype_is_the_recipes(dtype: str, expected: torch.dtype, tmp_path: Path) -> None:
    model = load_causal(saved(tmp_path), ModelConfig(dtype=dtype))
    assert {parameter.dtype for parameter in model.parameters()} == {expected}


@dataclass(frozen=True)
class Trained:
    """Number of updates in the first layer, and the weights after them."""

    passes: int
    weights: dict[str, np.ndarray]


def train(rank: Rank, folder: Path, checkpointing: bool) -> Trained:
    """One update of Adam without momentum and with ε = 1, whose step is smooth in the gradient."""
    place, passes = join(rank), []
    lm = load_causal(folder, ModelConfig(gradient_checkpointing=checkpointing))
    lm.base_model.layers[0].mlp.register_forward_pre_hook(lambda *_: passes.append(1))
    optimizer = OptimizerConfig(lr=0.5, schedule="constant", betas=(0.0, 0.0), eps=1.0, max_grad_norm=0.0)
    engine = ZeroEngine(PolicyNet(lm), RoleConfig(), "float32", rank, place, optimizer, 1)
    row = pack_row(random_sequences((3, 5), (2, 4)), [0, 1], place)
    engine.update([row], lambda row: -engine.engine(row, 1.0)[0].sum(), 9)
    return Trained(len(passes), {name: tensor.numpy() for name, tensor in engine.full_state(lm)})


def test_checkpointing_runs_each_layer_again_and_changes_no_update(tmp_path: Path, one_rank: Crew) -> None:
    folder = saved(tmp_path)
    [plain], [again] = (one_rank.run(train, folder, checkpointing) for checkpointing in (False, True))
    assert (plain.passes, again.passes) == (1, 2)
    for name, weight in plain.weights.items():
        np.testing.assert_allclose(again.weights[name], weight, rtol=1e-5, atol=1e-6, err_msg=name)


def test_a_classifier_has_the_causal_models_backbone_and_one_label(tmp_path: Path) -> None:
    folder = saved(tmp_path)
    causal, classifier = load_causal(folder, ModelConfig()), load_classifier(folder, ModelConfig())
    assert classifier.score.weight.shape == (1, 64)
    expected = causal.base_model.state_dict()
    for name, tensor in classifier.base_model.state_dict().items():
        assert torch.equal(tensor, expected[name]), name


def test_the_reward_shift_is_saved_with_the_model_and_0_without(tmp_path: Path) -> None:
    classifier = load_classifier(saved(tmp_path / "causal"), ModelConfig())
    assert reward_shift(classifier) == 0.0
    setattr(classifier.config, REWARD_SHIFT, -1.25)
    classifier.save_pretrained(tmp_path / "reward")
    train_tokenizer([], 258).save_pretrained(tmp_path / "reward")
    again = load_classifier(tmp_path / "reward", ModelConfig())
    assert reward_shift(again) == -1.25
    assert torch.equal(again.score.weight, classifier.score.weight)


def test_a_pickled_model_is_refused(tmp_path: Path) -> None:
    folder = saved(tmp_path)
    torch.save(AutoModelForCausalLM.from_pretrained(folder).state_dict(), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(UserError, match="cannot load the model from") as caught:
        load_causal(folder, ModelConfig())
    assert "safetensors" in caught.value.fix


@pytest.mark.parametrize("load", [load_causal, load_classifier, load_tokenizer, context_length])
def test_a_folder_that_is_not_there_is_the_users_mistake(load: Any, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nowhere") as caught:
        load(tmp_path / "nowhere", ModelConfig())
    assert caught.value.why and caught.value.fix


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_the_context_is_found_under_either_name(architecture: str, tmp_path: Path) -> None:
    assert context_length(saved(tmp_path, architecture), ModelConfig()) == 64


def test_the_chat_template_is_the_recipes(tmp_path: Path) -> None:
    folder, template = saved(tmp_path), tmp_path / "chat.jinja"
    assert load_tokenizer(folder, ModelConfig()).chat_template is None
    template.write_text("{% for m in messages %}<{{ m.content }}>{% endfor %}")
    tokenizer = load_tokenizer(folder, ModelConfig(chat_template=str(template)))
    assert tokenizer.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False) == "<hi>"
    template.unlink()
    with pytest.raises(UserError, match=r"model.chat_template: no file .*chat.jinja"):
        load_tokenizer(folder, ModelConfig(chat_template=str(template)))


def test_padding_is_never_the_end(tmp_path: Path) -> None:
    folder = saved(tmp_path)
    tokenizer = train_tokenizer([], 258)
    tokenizer.pad_token = tokenizer.eos_token
    tokenizer.save_pretrained(folder)
    loaded = load_tokenizer(folder, ModelConfig())
    assert loaded.pad_token_id not in (None, loaded.eos_token_id)


def test_padding_without_a_row_in_the_embedding_is_not_the_classifiers(tmp_path: Path) -> None:
    """The model has 61 tokens; the padding token was added as number 258."""
    folder = saved(tmp_path)
    tokenizer = train_tokenizer([], 258)
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    assert tokenizer.pad_token_id == 258
    tokenizer.save_pretrained(folder)
    assert load_classifier(folder, ModelConfig()).config.pad_token_id is None


@pytest.mark.parametrize(("name", "may_be_a_name"), [("/no/such/model", False), ("my_model", True)])
def test_a_path_that_is_not_there_is_said_to_be_none(
    name: str, may_be_a_name: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unreachable(*_: object, **__: object) -> None:
        raise OSError("no connection")

    for auto in (AutoTokenizer, AutoConfig):
        monkeypatch.setattr(auto, "from_pretrained", unreachable)
    for load, part in ((load_tokenizer, "tokenizer"), (context_length, "settings")):
        with pytest.raises(UserError) as caught:
            load(name, ModelConfig())
        assert caught.value.what == f"cannot load the {part} from '{name}'"
        as_name = ", and as a name on the hub: no connection" if may_be_a_name else ""
        assert caught.value.why == f"there is no such file or folder{as_name}"
        assert "check the path" in caught.value.fix
