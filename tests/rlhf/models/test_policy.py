from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from rlhf.models import policy
from rlhf.models.packed_row import pack_row
from rlhf.models.policy import PolicyNet, token_logprobs
from rlhf.types import Sequences
from tests.rlhf.tiny import ARCHITECTURES, VOCABULARY, random_sequences, tiny_model

TEMPERATURE = 0.7
SEQUENCES = random_sequences((3, 5), (1, 4), (6, 1), (2, 7))
EVERY = list(range(len(SEQUENCES)))
WEIGHTS = torch.linspace(-1, 1, 17)
"""One number a response token, so that the gradients of different tokens cannot cancel unseen."""


def plain_logprobs(lm: PreTrainedModel, sequences: Sequences, temperature: float) -> tuple[Tensor, Tensor]:
    """Log-probabilities and entropies from whole logits, one sequence at a time and without packing."""
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
    """The gradient of every parameter; none may be missing, since under ZeRO its collective would be too."""
    module.zero_grad()
    loss.backward()
    return {name: parameter.grad.clone() for name, parameter in module.named_parameters()}


def assert_same_gradients(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    scale = max(float(gradient.abs().max()) for gradient in other.values())
    for name, gradient in one.items():
        torch.testing.assert_close(gradient, other[name], rtol=1e-5, atol=1e-5 * scale, msg=name)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_packed_logprobs_entropies_and_gradients_are_those_of_separate_passes(architecture: str) -> None:
    lm = tiny_model(AutoModelForCausalLM, architecture)
    logprobs, entropy = PolicyNet(lm)(pack_row(SEQUENCES, EVERY, "cpu"), TEMPERATURE)
    expected, expected_entropy = plain_logprobs(lm, SEQUENCES, TEMPERATURE)
    torch.testing.assert_close(logprobs, expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(entropy, expected_entropy, rtol=1e-5, atol=1e-5)
    assert logprobs.requires_grad and not entropy.requires_grad
    assert_same_gradients(gradients(lm, (WEIGHTS * logprobs).sum()), gradients(lm, (WEIGHTS * expected).sum()))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_an_empty_row_touches_every_parameter_and_contributes_zero(architecture: str) -> None:
    lm = tiny_model(AutoModelForCausalLM, architecture)
    logprobs, entropy = PolicyNet(lm)(pack_row(SEQUENCES, [], "cpu"), TEMPERATURE)
    assert logprobs.shape == entropy.shape == (0,)
    assert not any(gradient.any() for gradient in gradients(lm, logprobs.sum()).values())


@pytest.mark.parametrize("chunk", [1, 3, 17, 100])
def test_chunks_change_neither_values_nor_gradients(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    lm = tiny_model(AutoModelForCausalLM, "gpt_neox")
    row = pack_row(SEQUENCES, EVERY, "cpu")
    expected, expected_entropy = PolicyNet(lm)(row, TEMPERATURE)
    expected_gradients = gradients(lm, (WEIGHTS * expected).sum())
    monkeypatch.setattr(policy, "CHUNK", chunk)
    logprobs, entropy = PolicyNet(lm)(row, TEMPERATURE)
    torch.testing.assert_close(logprobs, expected)
    torch.testing.assert_close(entropy, expected_entropy)
    assert_same_gradients(gradients(lm, (WEIGHTS * logprobs).sum()), expected_gradients)


@pytest.mark.parametrize("with_gradient", [False, True])
def test_no_more_than_a_chunk_of_logits_exists(with_gradient: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    rows, linear = [], policy.functional.linear

    def counting(hidden: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        rows.append(len(hidden))
        return linear(hidden, weight, bias)

    monkeypatch.setattr(policy, "CHUNK", 4)
    monkeypatch.setattr(policy.functional, "linear", counting)
    hidden = torch.randn(10, 3, requires_grad=with_gradient)
    logprobs, _ = token_logprobs(hidden, torch.randn(5, 3), None, torch.zeros(10, dtype=torch.long), 1.0)
    assert rows == [4, 4, 2]
    if with_gradient:
        logprobs.sum().backward()
        assert sorted(rows) == [2, 2, 4, 4, 4, 4]  # made again, not kept


def of_logits(logits: list[float], target: int, temperature: float = 1.0) -> tuple[float, float]:
    """Log-probability of the target and entropy, of a head whose bias is the logits."""
    bias = torch.tensor(logits)
    hidden, weight = torch.zeros(1, 1), torch.zeros(len(logits), 1)
    logprob, entropy = token_logprobs(hidden, weight, bias, torch.tensor([target]), temperature)
    return logprob.item(), entropy.item()


@pytest.mark.parametrize(
    ("logits", "target", "expected"),
    [
        ([0.0, 0.0], 1, -0.6931471805599453),
        ([2.0, 2.0, 2.0], 2, -1.0986122886681098),
        ([1.0, 0.0, -math.inf], 0, -0.3132616875182228),
        ([2.0, 2.0], 0, -0.6931471805599453),
        ([1.0, 0.0], 1, -1.3132616875182228),
    ],
)
def test_logprobs_agree_with_openai(logits: list[float], target: int, expected: float) -> None:
    """openai/summarize-from-feedback, summarize_from_feedback/utils/test_torch_utils.py (label_logprobs)."""
    assert of_logits(logits, target)[0] == pytest.approx(expected, abs=1e-6)


def test_temperature_divides_the_logits() -> None:
    """Logits 1, 0 at temperature .5 are 2, 0: log σ(2), and the entropy of a coin with p = σ(2)."""
    logprob, entropy = of_logits([1.0, 0.0], 0, temperature=0.5)
    assert logprob == pytest.approx(-0.1269280110, abs=1e-6)
    assert entropy == pytest.approx(0.3653338668, abs=1e-6)


def test_entropy_of_a_uniform_distribution_is_the_logarithm_of_its_size() -> None:
    assert of_logits([3.0] * 8, 0)[1] == pytest.approx(math.log(8), abs=1e-6)


def test_softmax_is_in_float32_for_a_bfloat16_model() -> None:
    random = torch.Generator().manual_seed(0)
    hidden = torch.randn(1, 64, generator=random).to(torch.bfloat16).expand(VOCABULARY, 64)
    weight = torch.randn(VOCABULARY, 64, generator=random).to(torch.bfloat16)
    logprobs, entropy = token_logprobs(hidden, weight, None, torch.arange(VOCABULARY), TEMPERATURE)
    assert logprobs.dtype == entropy.dtype == torch.float32
    assert float(logprobs.exp().sum()) == pytest.approx(1, abs=1e-5)  # a softmax in bfloat16 misses by about 1e-2


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_the_head_is_the_models_own_and_counted_once(architecture: str) -> None:
    lm = tiny_model(AutoModelForCausalLM, architecture)
    net = PolicyNet(lm)
    assert [p.data_ptr() for p in net.external_parameters()] == [lm.get_output_embeddings().weight.data_ptr()]
    assert sum(p.numel() for p in net.parameters()) == sum(p.numel() for p in lm.parameters())
    assert all(name.startswith("lm.") for name in net.state_dict())
