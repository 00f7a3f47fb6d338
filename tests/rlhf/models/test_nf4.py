"""NF4 against its definition, against transformers and peft, and as the base of adapters."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from bitsandbytes.nn import Linear4bit
from peft import PeftModel
from safetensors.torch import save_file
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    BitsAndBytesConfig,
    MixtralConfig,
    PreTrainedModel,
)

from rlhf.config.schema import LoRAConfig, ModelConfig
from rlhf.errors import UserError
from rlhf.models.load import load_causal, load_policy
from rlhf.models.lora import adapter_settings, adapter_tensors, adapters, adapters_off, merged, plain_tensors
from rlhf.models.nf4 import NF4Linear, quantise
from rlhf.models.stored import dequantised, dtype_of, shape_of, stored_tensors
from tests.rlhf.models.test_lora import learn, logits, saved
from tests.rlhf.tiny import tiny_model

LEVELS = np.array(
    [-1, -0.69619280, -0.52507305, -0.39491749, -0.28444138, -0.18477343, -0.09105004, 0]
    + [0.07958030, 0.16093020, 0.24611230, 0.33791524, 0.44070983, 0.56261700, 0.72295684, 1]
)
"""Quantiles of NF4, from the paper's appendix E, rounded."""
NF4 = ["llama", "qwen2", "gpt_neox"]
DTYPES = ["float32", "bfloat16"]


def config(dtype: str = "float32", **lora: Any) -> ModelConfig:
    return ModelConfig(dtype=dtype, lora=LoRAConfig(**{"rank": 4, "alpha": 8.0, "quantization": "nf4", **lora}))


def digest(model: nn.Module) -> str:
    """Hash over the bytes of everything that is frozen."""
    found = hashlib.sha256()
    for parameter in model.parameters():
        for tensor in stored_tensors(parameter) if not parameter.requires_grad else ():
            found.update(tensor.detach().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


def test_a_weight_becomes_the_nearest_quantile_of_its_block() -> None:
    """Two blocks of 64 whose largest absolute value is 2: all scales are equal, so that quantising them is exact."""
    values = np.random.default_rng(0).uniform(-2, 2, (2, 64)).astype(np.float32)
    values[:, 7] = -2.0
    layer = nn.Linear(64, 2, bias=False)
    layer.weight.data = torch.from_numpy(values)
    expected = 2 * LEVELS[np.abs(values[..., None] / 2 - LEVELS).argmin(axis=-1)]
    np.testing.assert_allclose(dequantised(NF4Linear(layer).weight).numpy(), expected, atol=1e-6)


def test_scales_take_a_byte_each_and_four_more_for_256() -> None:
    """1,024 blocks: half a byte a weight, a byte a block, and four scales of scales."""
    weight = NF4Linear(nn.Linear(256, 256, bias=False)).weight
    packed, scales, offset, outer = stored_tensors(weight)
    assert [t.nbytes for t in (packed, scales, offset, outer)] == [256 * 256 // 2, 1024, 4, 4 * 4]
    assert (shape_of(weight), dtype_of(weight)) == ((256, 256), torch.float32)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("architecture", NF4)
def test_linear_layers_but_the_head_are_quantised_and_adapters_alone_learn(
    architecture: str, dtype: str, tmp_path: Path
) -> None:
    """With one target, the others are quantised too."""
    target = "query_key_value" if architecture == "gpt_neox" else "q_proj"
    model = load_policy(saved(tmp_path, architecture), config(dtype, targets=(target,)), seed=0)
    plain = load_causal(tmp_path, ModelConfig(dtype=dtype))
    layers = {name for name, m in plain.named_modules() if isinstance(m, nn.Linear)} - {"lm_head", "embed_out"}
    found = {name.removesuffix(".base_layer") for name, m in model.named_modules() if isinstance(m, Linear4bit)}
    assert found == layers
    assert all(
        m.weight.dtype == torch.uint8 and m.weight.quant_state.nested
        for m in model.modules()
        if isinstance(m, Linear4bit)
    )
    assert list(plain_tensors(model)) == list(plain.state_dict())
    learning = {id(parameter) for parameter in model.parameters() if parameter.requires_grad}
    assert learning == {id(tensor) for adapter in adapters(model).values() for tensor in (adapter.a, adapter.b)}
    for name, tensor in plain.state_dict().items():
        ours = plain_tensors(model)[name]
        assert (shape_of(ours), dtype_of(ours)) == (tensor.shape, tensor.dtype)
        if name.removesuffix(".weight") not in layers:
            assert torch.equal(ours, tensor), name


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("architecture", NF4)
def test_new_adapters_and_adapters_that_are_off_change_nothing_at_all(
    architecture: str, dtype: str, tmp_path: Path
) -> None:
    """What remains is the model with dequantised weights."""
    model = load_policy(saved(tmp_path, architecture), config(dtype), seed=0).train()
    fresh = logits(model)
    base = load_causal(tmp_path, ModelConfig(dtype=dtype))
    original = logits(base)
    base.load_state_dict({name: dequantised(tensor) for name, tensor in plain_tensors(model).items()})
    torch.testing.assert_close(fresh, logits(base), rtol=1e-5, atol=2e-5 if dtype == "float32" else 0.05)
    assert (fresh - original).abs().max() > 0.1
    learn(model)
    with adapters_off(model):
        assert torch.equal(logits(model), fresh)
    assert not torch.equal(logits(model), fresh)


@pytest.mark.parametrize("architecture", NF4)
def test_merged_weights_in_a_plain_model_give_the_adapted_models_logits(architecture: str, tmp_path: Path) -> None:
    model = learn(load_policy(saved(tmp_path, architecture), config(), seed=0).train())
    plain, adapted = plain_tensors(model), adapters(model)
    other = load_causal(tmp_path, ModelConfig())
    other.load_state_dict({name: merged(name, plain, adapted) for name in plain})
    torch.testing.assert_close(logits(other), logits(model), rtol=1e-5, atol=5e-5)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_thousand_merges_drift_by_nothing(dtype: str, tmp_path: Path) -> None:
    model = learn(load_policy(saved(tmp_path, "llama"), config(dtype), seed=0).train())
    plain, adapted = plain_tensors(model), adapters(model)
    before = digest(model)
    first = {name: merged(name, plain, adapted) for name in adapted}
    for _ in range(1000):
        last = {name: merged(name, plain, adapted) for name in adapted}
    assert digest(model) == before
    for name, tensor in first.items():
        assert tensor.dtype == torch.float32
        assert torch.equal(last[name], tensor), name


def test_passes_in_evaluation_mode_keep_the_storage(tmp_path: Path) -> None:
    """Some CPUs have a faster layout, into which bitsandbytes would repack the matrices."""
    model = learn(load_policy(saved(tmp_path, "llama"), config("bfloat16"), seed=0))
    before, plain = digest(model), {n: merged(n, plain_tensors(model), adapters(model)) for n in adapters(model)}
    logits(model.eval())
    assert digest(model) == before
    for name, tensor in plain.items():
        assert torch.equal(merged(name, plain_tensors(model), adapters(model)), tensor), name


def from_transformers(folder: Path, dtype: str) -> PreTrainedModel:
    """The folder's model as transformers quantises it."""
    settings = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=getattr(torch, dtype),
    )
    return AutoModelForCausalLM.from_pretrained(folder, quantization_config=settings, dtype=getattr(torch, dtype))


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_adapter_belongs_to_the_model_as_transformers_quantises_it(dtype: str, tmp_path: Path) -> None:
    """peft loads the saved adapter onto it, and computes what was trained."""
    model = learn(load_policy(saved(tmp_path / "base", "llama"), config(dtype), seed=0).train())
    settings = adapter_settings(model)
    assert settings is not None
    settings.save_pretrained(str(tmp_path / "adapter"))
    tensors = {name: tensor.detach().contiguous() for name, tensor in adapter_tensors(model).items()}
    save_file(tensors, tmp_path / "adapter" / "adapter_model.safetensors", metadata={"format": "pt"})
    other = PeftModel.from_pretrained(
        from_transformers(tmp_path / "base", dtype), tmp_path / "adapter", autocast_adapter_dtype=False
    )
    assert torch.equal(logits(other.train()), logits(model))


def models_that_cannot_be_quantised() -> Iterator[tuple[str, PreTrainedModel]]:
    yield "transposed", tiny_model(AutoModelForCausalLM, "gpt2")
    experts = MixtralConfig(
        vocab_size=61, hidden_size=64, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2, num_local_experts=4,
    )  # fmt: skip
    yield "experts", AutoModelForCausalLM.from_config(experts)


@pytest.mark.parametrize("why", ["transposed", "experts"])
def test_matrices_that_are_no_linear_layers_are_refused(why: str, tmp_path: Path) -> None:
    dict(models_that_cannot_be_quantised())[why].save_pretrained(tmp_path)
    with pytest.raises(UserError, match="model.lora.quantization = nf4 and a model of type") as caught:
        load_policy(tmp_path, config(), seed=0)
    assert why in str(caught.value)


def test_a_model_without_linear_layers_is_refused() -> None:
    with pytest.raises(UserError, match="it has no linear layer"):
        quantise(tiny_model(AutoModelForCausalLM, "llama"), {})
