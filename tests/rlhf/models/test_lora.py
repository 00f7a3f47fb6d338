from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from rlhf.config.schema import LoRAConfig, ModelConfig
from rlhf.errors import UserError
from rlhf.models.load import load_causal, load_policy
from rlhf.models.lora import Adapter, adapters, adapters_off, merged, plain_tensors
from tests.rlhf.tiny import ARCHITECTURES, tiny_model

TOKENS = torch.tensor([[3, 14, 15, 9, 26, 5]])
LORA = ModelConfig(lora=LoRAConfig(rank=4, alpha=8.0))
ATTENTION = {"llama": "q_proj", "qwen2": "q_proj", "gpt_neox": "query_key_value", "gpt2": "c_attn"}


def saved(folder: Path, architecture: str) -> Path:
    tiny_model(AutoModelForCausalLM, architecture).save_pretrained(folder)
    return folder


def logits(model: PreTrainedModel) -> torch.Tensor:
    with torch.no_grad():
        return model(TOKENS).logits


def learn(model: PreTrainedModel) -> PreTrainedModel:
    """Fill every B with numbers, as training would; large enough to matter."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for adapter in adapters(model).values():
            adapter.b.add_(0.3 * torch.randn(adapter.b.shape, generator=generator))
    return model


def test_merging_adds_the_scaled_product() -> None:
    """B·A = [[3, 6], [4, 8]] · ½."""
    a, b = torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0], [4.0]])
    weight = torch.tensor([[10.0, 20.0], [30.0, 40.0]])
    plain = Adapter(a=a, b=b, scale=0.5, is_transposed=False).merged(weight)
    assert plain.tolist() == [[11.5, 23.0], [32.0, 44.0]]
    turned = Adapter(a=a, b=b, scale=0.5, is_transposed=True).merged(weight)
    assert turned.tolist() == [[11.5, 22.0], [33.0, 44.0]]


def test_merging_is_in_float32() -> None:
    """In bfloat16 256 + 1 is 256, and 3 · 1.0078125² loses its last digits."""
    narrow = torch.tensor([[1.0078125]], dtype=torch.bfloat16)
    weight = torch.tensor([[256.0]], dtype=torch.bfloat16)
    found = Adapter(a=narrow, b=narrow, scale=3.0, is_transposed=False).merged(weight)
    assert found.item() == 256 + 3 * 1.0078125**2


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("some", [False, True])
def test_merged_weights_in_a_plain_model_give_the_adapted_models_logits(
    architecture: str, some: bool, tmp_path: Path
) -> None:
    """All linear layers, and attention's first alone; GPT-2's are transposed, Qwen2's and GPT-2's head is tied."""
    targets = (ATTENTION[architecture],) if some else ("all-linear",)
    folder = saved(tmp_path, architecture)
    model = learn(load_policy(folder, ModelConfig(lora=LoRAConfig(rank=4, alpha=8.0, targets=targets)), seed=0))
    plain, adapted = plain_tensors(model), adapters(model)
    other = load_causal(folder, ModelConfig())
    before = logits(other)
    assert list(plain) == list(other.state_dict())
    assert len(adapted) == (2 if some else {"llama": 14, "qwen2": 14, "gpt_neox": 8, "gpt2": 8}[architecture])
    other.load_state_dict({name: merged(name, plain, adapted) for name in plain})
    assert (logits(model) - before).abs().max() > 0.1
    torch.testing.assert_close(logits(other), logits(model), rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_new_adapters_and_adapters_that_are_off_change_nothing_at_all(
    architecture: str, dtype: str, tmp_path: Path
) -> None:
    folder = saved(tmp_path, architecture)
    config = ModelConfig(lora=LoRAConfig(rank=4), dtype=dtype)
    model = load_policy(folder, config, seed=0)
    expected = logits(load_causal(folder, config))
    assert torch.equal(logits(model), expected)
    learn(model)
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    with adapters_off(model):
        assert torch.equal(logits(model), expected)
    assert not torch.equal(logits(model), expected)
    assert [name for name, parameter in model.named_parameters() if parameter.requires_grad] == trained


def test_only_a_and_b_learn_in_the_models_dtype(tmp_path: Path) -> None:
    model = load_policy(saved(tmp_path, "llama"), ModelConfig(lora=LoRAConfig(rank=4), dtype="bfloat16"), seed=0)
    learning = {id(parameter) for parameter in model.parameters() if parameter.requires_grad}
    expected = [tensor for adapter in adapters(model).values() for tensor in (adapter.a, adapter.b)]
    assert learning == {id(tensor) for tensor in expected}
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}


def test_a_is_drawn_from_the_seed_alone_and_b_is_zero(tmp_path: Path) -> None:
    """Uniform within 1/√in of 0, as torch draws a linear layer."""
    folder = saved(tmp_path, "llama")
    torch.manual_seed(1)
    one = adapters(load_policy(folder, LORA, seed=3))
    after = torch.rand(1)
    torch.manual_seed(2)
    again, other = adapters(load_policy(folder, LORA, seed=3)), adapters(load_policy(folder, LORA, seed=4))
    drawn = torch.cat([adapter.a.detach().flatten() * math.sqrt(adapter.a.shape[1]) for adapter in one.values()])
    assert drawn.abs().max() <= 1
    assert float(drawn.std()) == pytest.approx(1 / math.sqrt(3), rel=0.05)
    assert not any(adapter.b.any() for adapter in one.values())
    for name, adapter in one.items():
        assert torch.equal(adapter.a, again[name].a), name
        assert not torch.equal(adapter.a, other[name].a), name
    torch.manual_seed(1)
    assert torch.equal(torch.rand(1), after)  # nothing was taken from the process's own stream


def test_layers_are_chosen_by_name_or_by_its_end(tmp_path: Path) -> None:
    folder = saved(tmp_path, "llama")
    targets = ("o_proj", "layers.1.mlp.up_proj")
    model = load_policy(folder, ModelConfig(lora=LoRAConfig(targets=targets)), seed=0)
    attention = {f"model.layers.{i}.self_attn.o_proj.weight" for i in range(2)}
    assert adapters(model).keys() == attention | {"model.layers.1.mlp.up_proj.weight"}


@pytest.mark.parametrize("target", ["lm_head", "embed_tokens", "proj", "c_attn"])
def test_what_is_no_linear_layer_of_the_model_is_refused(target: str, tmp_path: Path) -> None:
    """The output head runs outside the forward pass, and ``proj`` is the end of a name but not a whole part of it."""
    config = ModelConfig(lora=LoRAConfig(targets=("q_proj", target)))
    with pytest.raises(UserError, match=f"no linear layer '{target}'") as caught:
        load_policy(saved(tmp_path, "llama"), config, seed=0)
    assert "down_proj, gate_proj, k_proj, o_proj, q_proj, up_proj, v_proj" in str(caught.value)


def test_adapters_without_a_layer_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"model.lora.targets = \[\]"):
        load_policy(saved(tmp_path, "llama"), ModelConfig(lora=LoRAConfig(targets=())), seed=0)
