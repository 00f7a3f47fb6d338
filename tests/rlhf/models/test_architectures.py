"""Every architecture of ``tests/architectures.py`` computes the same as plain PyTorch, or is refused."""

from __future__ import annotations

import numpy as np
import pytest

from rlhf.config.schema import LoRAConfig
from rlhf.errors import UserError
from rlhf.models.lora import add_adapters
from rlhf.models.policy import PolicyNet
from rlhf.types import Sequences
from tests.architectures import CONFIGS, VOCABULARY, compare, examined, small_model

NOT_PACKED = {
    "Bloom",
    "Falcon, rotary",
    "Falcon, ALiBi",
    "MPT",
    "GPT-J",
    "GPT-Neo",
    "Qwen 3 Next",
    "LFM2",
    "Granite hybrid",
    "Mamba",
    "Mamba 2",
    "RecurrentGemma",
    "Falcon H1",
    "Bamba",
}
"""Attention that cannot be replaced, convolutions, recurrent states. The program has no such list."""


def sequences() -> Sequences:
    """All but the last are longer than the sliding windows and chunks of the small models."""
    random = np.random.default_rng(0)
    sizes = ((3, 14), (5, 35), (2, 7))
    drawn = [[random.integers(2, VOCABULARY, length).astype(np.int32) for length in pair] for pair in sizes]
    return Sequences.pack((prompt, response) for prompt, response in drawn)


@pytest.mark.parametrize("name", CONFIGS)
def test_logprobs_gradients_and_adapters_are_plain_pytorchs(name: str) -> None:
    """Against transformers' eager attention and logits, one sequence at a time; adapters against merged weights."""
    found = compare(name, sequences())
    assert found.examination.form == ("padded" if name in NOT_PACKED else "packed")
    assert found.logprobs < 1e-5
    assert found.gradient < 1e-5
    assert found.adapted < 5e-5


def test_adapters_that_a_model_passes_over_are_refused_with_those_it_computes() -> None:
    """Mamba's kernel uses the weight of ``dt_proj`` and not its output."""
    net = PolicyNet(small_model("Mamba"))
    add_adapters(net.lm, LoRAConfig(), seed=0)
    with pytest.raises(UserError, match="adapters of dt_proj are never computed") as caught:
        examined(net)
    assert caught.value.fix == "model.lora.targets=[in_proj,out_proj,x_proj]"
