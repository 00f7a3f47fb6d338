"""Parameters and KV cache of models with public counts, and of small real models."""

from __future__ import annotations

import pytest
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from launch.plan.shapes import scratch_shape, shape_of
from rlhf.config.schema import ScratchConfig
from rlhf.errors import UserError
from tests.launch.plan.small import TINY, find
from tests.rlhf.tiny import ARCHITECTURES, tiny_config

COUNTS = {
    "meta-llama/Meta-Llama-3-8B": 8_030_261_248,
    "meta-llama/Llama-3.1-70B-Instruct": 70_553_706_496,
    "meta-llama/Llama-3.1-405B": 405_853_388_800,
    "meta-llama/Llama-3.2-1B": 1_235_814_400,
    "meta-llama/Llama-3.2-3B": 3_212_749_824,
    "mistralai/Mistral-7B-v0.1": 7_241_732_096,
    "mistralai/Mistral-7B-Instruct-v0.3": 7_248_023_552,
    "Qwen/Qwen2.5-0.5B": 494_032_768,
    "Qwen/Qwen2.5-1.5B": 1_543_714_304,
    "Qwen/Qwen2.5-3B": 3_085_938_688,
    "Qwen/Qwen2.5-7B-Instruct": 7_615_616_512,
    "Qwen/Qwen2.5-14B": 14_770_033_664,
    "Qwen/Qwen2.5-32B": 32_763_876_352,
    "Qwen/Qwen2.5-72B": 72_706_203_648,
    "EleutherAI/pythia-160m": 162_322_944,
    "EleutherAI/pythia-410m": 405_334_016,
    "EleutherAI/pythia-1b": 1_011_781_632,
    "EleutherAI/pythia-1.4b": 1_414_647_808,
    "EleutherAI/pythia-2.8b": 2_775_208_960,
    "EleutherAI/pythia-6.9b-deduped": 6_857_302_016,
    "EleutherAI/pythia-12b": 11_846_072_320,
    "openai-community/gpt2": 124_439_808,
    "openai-community/gpt2-medium": 354_823_168,
    "openai-community/gpt2-large": 774_030_080,
    "openai-community/gpt2-xl": 1_557_611_200,
}
"""The safetensors counts of the models' pages on the hub."""


@pytest.mark.parametrize("name", COUNTS)
def test_parameters_are_those_that_the_models_page_counts(name: str) -> None:
    assert find(name).parameters == COUNTS[name]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_parameters_are_those_of_the_real_model(architecture: str) -> None:
    config = tiny_config(architecture)
    shape = shape_of(config.to_dict(), architecture)
    assert shape.parameters == AutoModelForCausalLM.from_config(config).num_parameters()
    config.num_labels = 1
    assert shape.classifier == AutoModelForSequenceClassification.from_config(config).num_parameters()


def test_kv_cache_by_hand() -> None:
    """Llama 3 8B: keys and values of 32 layers, 8 heads of 128, two bytes: 2·32·8·128·2 = 131,072 per token."""
    shape = find("meta-llama/Llama-3.1-8B")
    assert shape.kv_bytes(2) == 131_072
    assert shape.kv_bytes(2, shards=4) == 131_072 // 4
    assert shape.kv_bytes(2, shards=16) == 131_072 // 8, "a head is never split: shards beyond the heads repeat one"


def test_a_layer_by_hand() -> None:
    assert TINY.matrices == 2 * 64 + 2 * 32 + 3 * 128 == 576
    assert TINY.parameters == 2 * (576 + 2 * 8) + 8 + 2 * 800
    assert TINY.classifier == 2 * (576 + 2 * 8) + 8 + 800 + 8


def test_adapters_by_hand() -> None:
    """Rank 4: 4·(inputs + outputs) for each layer that is named."""
    assert TINY.adapters(4, ("q_proj", "k_proj")) == 2 * 4 * ((8 + 8) + (8 + 4))
    assert TINY.adapters(4, ("all-linear",)) == 2 * 4 * (2 * 16 + 2 * 12 + 3 * 24)


def test_a_model_from_nothing() -> None:
    shape = scratch_shape(ScratchConfig())
    layer = 4 * 128**2 + 3 * 128 * 384 + 2 * 128
    assert shape.parameters == 4 * layer + 1024 * 128 + 128


@pytest.mark.parametrize("lost", ["hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size"])
def test_a_config_without_a_size_is_refused_by_its_name(lost: str) -> None:
    config = tiny_config("llama").to_dict()
    for value in (None, "many", 0):
        with pytest.raises(UserError, match=f"'mine': {lost} is"):
            shape_of({**config, lost: value}, "mine")


def test_an_unknown_kind_of_model_is_refused() -> None:
    with pytest.raises(UserError, match="model_type = 'mamba'"):
        shape_of({"model_type": "mamba"}, "mine")
