from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import AutoModelForCausalLM, PreTrainedModel

from rlhf.models import logprobs
from rlhf.models.logprobs import Entropy
from rlhf.models.packed_row import pack_row
from rlhf.models.policy import PolicyNet
from rlhf.types import Sequences
from tests.rlhf.tiny import ARCHITECTURES, VOCABULARY, random_sequences, tiny_model

TEMPERATURE = 0.7
SEQUENCES = random_sequences((3, 5), (1, 4), (6, 1), (2, 7))
EVERY = list(range(len(SEQUENCES)))
WEIGHTS = torch.linspace(-1, 1, 17)
"""One weight per response token, so that gradients of different tokens cannot cancel unnoticed."""


def plain_logprobs(lm: PreTrainedModel, sequences: Sequences, temperature: float) -> tuple[Tensor, Tensor]:
    """Log-probabilities and entropies from whole logits, one sequence at a time, unpacked."""
    logprobs, entropies = [], []
    for i in range(len(sequences)):
        tokens = torch.tensor([*sequences.prompt(i), *sequences.response(i)], dtype=torch.long)
        begin = int(sequences.prompt_lengths[i])
        logits = lm(tokens[None]).logits[0, begin - 1 : -1] / temperature
        distribution = torch.distributions.Categorical(logits=logits)
        logprobs.append(distribution.log_prob(tokens[begin:]))
        entropies.append(distribution.entropy())
    return torch.cat(logprobs), torch.cat(entropies)


def gradients(module: nn.Module, loss: Tensor) -> dict[str, Tensor]:
    """The gradient of every parameter; none may be missing, because its collective would be missing under ZeRO."""
    module.zero_grad()
    loss.backward()
    return {name: parameter.grad.clone() for name, parameter in module.named_parameters()}


def assert_same_gradients(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    scale = max(float(gradient.abs().max()) for gradient in other.values())
    for name, gradient in one.items():
        torch.testing.assert_close(gradient, other[name], rtol=1e-5, atol=1e-5 * scale, msg=name)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_packed_logprobs_entropies_and_gradients_are_those_of_separate_passes(architecture: str) -> None:
    lm, plain = (tiny_model(AutoModelForCausalLM, architecture) for _ in range(2))
    logprobs, entropy = PolicyNet(lm)(pack_row(SEQUENCES, EVERY, "cpu"), TEMPERATURE, "value")
    expected, expected_entropy = plain_logprobs(plain, SEQUENCES, TEMPERATURE)
    torch.testing.assert_close(logprobs, expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(entropy, expected_entropy, rtol=1e-5, atol=1e-5)
    assert logprobs.requires_grad and not entropy.requires_grad
    assert_same_gradients(gradients(lm, (WEIGHTS * logprobs).sum()), gradients(plain, (WEIGHTS * expected).sum()))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_entropys_gradient_is_that_of_separate_passes(architecture: str) -> None:
    lm, plain = (tiny_model(AutoModelForCausalLM, architecture) for _ in range(2))
    logprobs, entropy = PolicyNet(lm)(pack_row(SEQUENCES, EVERY, "cpu"), TEMPERATURE, "trained")
    _, expected = plain_logprobs(plain, SEQUENCES, TEMPERATURE)
    loss, expected_loss = (WEIGHTS * entropy).sum(), (WEIGHTS * expected).sum()
    assert_same_gradients(gradients(lm, loss + 0 * logprobs.sum()), gradients(plain, expected_loss))


def test_a_frozen_network_gives_no_gradient_although_one_is_asked_for() -> None:
    lm = tiny_model(AutoModelForCausalLM, "llama").requires_grad_(False)
    logprobs, entropy = PolicyNet(lm)(pack_row(SEQUENCES, EVERY, "cpu"), TEMPERATURE, "trained")
    assert not logprobs.requires_grad and not entropy.requires_grad


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("wanted", ["value", "trained"])
def test_an_empty_row_touches_every_parameter_and_contributes_zero(architecture: str, wanted: Entropy) -> None:
    lm = tiny_model(AutoModelForCausalLM, architecture)
    logprobs, entropy = PolicyNet(lm)(pack_row(SEQUENCES, [], "cpu"), TEMPERATURE, wanted)
    assert logprobs.shape == entropy.shape == (0,)
    assert not any(gradient.any() for gradient in gradients(lm, logprobs.sum() + entropy.sum()).values())


@pytest.mark.parametrize("rows", [1, 3, 16, 17, 100])
def test_chunks_change_neither_values_nor_gradients(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    lm = tiny_model(AutoModelForCausalLM, "gpt_neox")
    row = pack_row(SEQUENCES, EVERY, "cpu")

    def of_row() -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        chosen, entropy = PolicyNet(lm)(row, TEMPERATURE, "trained")
        loss = (WEIGHTS * chosen).sum() + (WEIGHTS.flip(0) * entropy).sum()
        return chosen, entropy, gradients(lm, loss)

    expected, expected_entropy, expected_gradients = of_row()
    monkeypatch.setattr(logprobs, "CHUNK", rows * VOCABULARY)
    chosen, entropy, found = of_row()
    torch.testing.assert_close(chosen, expected)
    torch.testing.assert_close(entropy, expected_entropy)
    assert_same_gradients(found, expected_gradients)


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_the_head_is_the_models_own_and_counted_once(architecture: str) -> None:
    lm = tiny_model(AutoModelForCausalLM, architecture)
    net = PolicyNet(lm)
    assert [p.data_ptr() for p in net.external_parameters()] == [lm.get_output_embeddings().weight.data_ptr()]
    assert sum(p.numel() for p in net.parameters()) == sum(p.numel() for p in lm.parameters())
    assert all(name.startswith("lm.") for name in net.state_dict())


class LargestTensor(TorchDispatchMode):
    """Notes the number of elements of the largest tensor that an operation returns."""

    size = 0

    def __torch_dispatch__(self, operation: Any, types: Any, arguments: Any = (), options: Any = None) -> Any:
        result = operation(*arguments, **(options or {}))
        for each in tree_leaves(result):
            self.size = max(self.size, each.numel() if isinstance(each, Tensor) else 0)
        return result


@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_long_row_makes_no_tensor_of_its_square_nor_all_logits(
    checkpointing: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """32,768 tokens: the square has 2^30 elements, all logits 2^24; a chunk has 2^20, the row's states 2^20."""
    monkeypatch.setattr(logprobs, "CHUNK", 2**20)
    sizes = {"vocab_size": 1024, "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1}
    lm = tiny_model(AutoModelForCausalLM, "llama", **sizes, max_position_embeddings=256).train()
    if checkpointing:
        lm.gradient_checkpointing_enable({"use_reentrant": False})
    row = pack_row(random_sequences(*[(128, 128)] * 128), range(128), "cpu")
    assert row.tokens.shape == (1, 2**15) and row.targets.shape == (2**14,)
    with LargestTensor() as seen:
        chosen, entropy = PolicyNet(lm)(row, TEMPERATURE, "trained")
        (chosen.sum() + entropy.sum()).backward()
    assert 2**20 <= seen.size <= 2**21
