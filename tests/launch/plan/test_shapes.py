"""Parameters and KV cache of models with public counts, and of small real models."""

from __future__ import annotations

import pytest
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, T5Config

from launch.plan.shapes import count_shape, scratch_shape
from rlhf.config.schema import ScratchConfig
from rlhf.errors import UserError
from tests.architectures import CONFIGS, small_config
from tests.launch.plan.small import TINY, find

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
    "Qwen/Qwen3-8B": 8_190_735_360,
    "google/gemma-2-9b": 9_241_705_984,
    "mistralai/Mixtral-8x7B-v0.1": 46_702_792_704,
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


ATTENTION = [name for name in CONFIGS if not name.startswith("Mamba")]


@pytest.mark.parametrize("name", ATTENTION)
def test_parameters_are_those_of_the_real_model(name: str) -> None:
    config = small_config(name)
    shape, model = count_shape(config, name), AutoModelForCausalLM.from_config(config)
    assert shape.parameters == model.num_parameters()
    assert shape.adapters(1, ("all-linear",)) > 0


@pytest.mark.parametrize("name", ["Llama", "Qwen 2", "GPT-NeoX", "GPT-2", "Gemma 2"])
def test_a_classifier_has_one_output_instead_of_the_vocabulary(name: str) -> None:
    config = small_config(name, num_labels=1)
    real = AutoModelForSequenceClassification.from_config(config)
    assert count_shape(config, name).classifier == real.num_parameters()


def test_a_token_passes_two_of_eight_experts() -> None:
    """Mixtral-8x7B: 12,879,925,248 active parameters by its authors' count, of which embedding, head and norms."""
    shape = find("mistralai/Mixtral-8x7B-v0.1")
    norms = (2 * 32 + 1) * 4096
    assert shape.matrices + 2 * shape.embedding + norms == 12_879_925_248
    assert shape.intermediate == 2 * 14336


def test_kv_cache_by_hand() -> None:
    """Llama 3 8B: keys and values of 32 layers, 8 heads of 128, two bytes: 2·32·8·128·2 = 131,072 per token."""
    shape = find("meta-llama/Llama-3.1-8B")
    assert shape.kv_bytes(2) == 131_072
    assert shape.kv_bytes(2, shards=4) == 131_072 // 4
    assert shape.kv_bytes(2, shards=16) == 131_072 // 8, "a head is never split: shards beyond the heads repeat one"


def test_a_layer_by_hand() -> None:
    assert TINY.matrices == 2 * (2 * 64 + 2 * 32 + 3 * 128) == 2 * 576
    assert TINY.parameters == 2 * (576 + 2 * 8) + 8 + 2 * 800
    assert TINY.classifier == 2 * (576 + 2 * 8) + 8 + 800 + 8


def test_adapters_by_hand() -> None:
    """Rank 4: 4·(inputs + outputs) for each layer that is named."""
    assert TINY.adapters(4, ("q_proj", "k_proj")) == 2 * 4 * ((8 + 8) + (8 + 4))
    assert TINY.adapters(4, ("all-linear",)) == 2 * 4 * (2 * 16 + 2 * 12 + 3 * 24)


def test_weights_that_can_be_quantised_by_hand() -> None:
    """Matrices of all layers, without head and embedding."""
    assert TINY.linear_weights == TINY.matrices == 2 * 576


def test_a_model_from_nothing() -> None:
    shape = scratch_shape(ScratchConfig())
    layer = 4 * 128**2 + 3 * 128 * 384 + 2 * 128
    assert shape.parameters == 4 * layer + 1024 * 128 + 128


def test_tensor_parallelism_divides_matrices_and_the_biases_of_their_outputs() -> None:
    """Qwen 2 by hand: two layers of four 64·64 and three 64·96 matrices, and 3·64 biases of q, k and v."""
    assert count_shape(small_config("Qwen 2"), "mine").split == 2 * (4 * 64 * 64 + 3 * 64 * 96 + 3 * 64)
    assert count_shape(small_config("Gemma 2"), "mine").split == 0


def test_a_model_that_cannot_be_planned_is_refused() -> None:
    with pytest.raises(UserError, match="'mine' has no attention heads"):
        count_shape(small_config("Mamba"), "mine")
    with pytest.raises(UserError, match="'mine' describes no causal language model"):
        count_shape(T5Config(), "mine")
