from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from rlhf.models import policy
from rlhf.models.packed_row import pack_row
from rlhf.models.policy import Entropy, PolicyNet, token_logprobs
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


@pytest.mark.parametrize("chunk", [1, 3, 17, 100])
def test_chunks_change_neither_values_nor_gradients(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    lm = tiny_model(AutoModelForCausalLM, "gpt_neox")
    row = pack_row(SEQUENCES, EVERY, "cpu")

    def of_row() -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        logprobs, entropy = PolicyNet(lm)(row, TEMPERATURE, "trained")
        loss = (WEIGHTS * logprobs).sum() + (WEIGHTS.flip(0) * entropy).sum()
        return logprobs, entropy, gradients(lm, loss)

    expected, expected_entropy, expected_gradients = of_row()
    monkeypatch.setattr(policy, "CHUNK", chunk)
    logprobs, entropy, found = of_row()
    torch.testing.assert_close(logprobs, expected)
    torch.testing.assert_close(entropy, expected_entropy)
    assert_same_gradients(found, expected_gradients)


@pytest.mark.parametrize("with_gradient", [False, True])
def test_no_more_than_a_chunk_of_logits_exists(with_gradient: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    rows, weight = [], torch.randn(3, 5)

    def counting(hidden: Tensor) -> Tensor:
        rows.append(len(hidden))
        return hidden @ weight

    monkeypatch.setattr(policy, "CHUNK", 4)
    hidden = torch.randn(10, 3, requires_grad=with_gradient)
    (logprobs,) = token_logprobs(hidden, counting, torch.zeros(10, dtype=torch.long), 1.0)
    assert rows == [4, 4, 2]
    if with_gradient:
        logprobs.sum().backward()
        assert sorted(rows) == [2, 4, 4, 4, 4]  # made again, but for the last, with which the backward pass begins


def of_logits(logits: list[float], target: int, temperature: float = 1.0) -> tuple[float, float]:
    """Log-probability of the target and entropy, for a head that returns these logits."""
    logprob, entropy = token_logprobs(
        torch.zeros(1, 1), lambda hidden: torch.tensor([logits]), torch.tensor([target]), temperature, "value"
    )
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


def entropy_gradient(logits: list[float], temperature: float = 1.0) -> list[float]:
    """The gradient of the entropy with respect to the logits."""
    bias = torch.tensor(logits, requires_grad=True)
    hidden = torch.zeros(1, 1, requires_grad=True)
    _, entropy = token_logprobs(hidden, lambda hidden: bias + 0 * hidden, torch.tensor([0]), temperature, "trained")
    entropy.sum().backward()
    return bias.grad.tolist()


def test_the_entropys_gradient_by_hand() -> None:
    """∂H/∂l_i = −p_i (log p_i + H); p = (¾, ¼): ¾ · ¼ · (log ¼ − log ¾) = −3/16 log 3, and its opposite."""
    assert entropy_gradient([math.log(3), 0.0]) == pytest.approx([-3 / 16 * math.log(3), 3 / 16 * math.log(3)])
    halved = [g / 2 for g in entropy_gradient([math.log(9), 0.0], temperature=1.0)]
    assert entropy_gradient([2 * math.log(9), 0.0], temperature=2.0) == pytest.approx(halved)


def test_the_entropys_gradient_is_0_at_its_largest_and_its_smallest() -> None:
    assert entropy_gradient([1.0] * 5) == pytest.approx([0.0] * 5, abs=1e-7)
    assert entropy_gradient([0.0, -1e4, -1e4]) == pytest.approx([0.0] * 3, abs=1e-7)


def test_an_impossible_token_has_no_part_in_the_entropy_or_its_gradient() -> None:
    assert of_logits([math.log(3), 0.0, -math.inf], 0)[1] == pytest.approx(0.5623351446, abs=1e-6)  # of (¾, ¼)
    found = entropy_gradient([math.log(3), 0.0, -math.inf])
    assert found == pytest.approx([-3 / 16 * math.log(3), 3 / 16 * math.log(3), 0.0])


def test_softmax_is_in_float32_for_a_bfloat16_model() -> None:
    random = torch.Generator().manual_seed(0)
    hidden = torch.randn(1, 64, generator=random).to(torch.bfloat16).expand(VOCABULARY, 64)
    weight = torch.randn(VOCABULARY, 64, generator=random).to(torch.bfloat16)
    logprobs, entropy = token_logprobs(hidden, lambda h: h @ weight.T, torch.arange(VOCABULARY), TEMPERATURE, "value")
    assert logprobs.dtype == entropy.dtype == torch.float32
    assert float(logprobs.exp().sum()) == pytest.approx(1, abs=1e-5)  # a softmax in bfloat16 misses by about 1e-2


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_the_head_is_the_models_own_and_counted_once(architecture: str) -> None:
    lm = tiny_model(AutoModelForCausalLM, architecture)
    net = PolicyNet(lm)
    assert [p.data_ptr() for p in net.external_parameters()] == [lm.get_output_embeddings().weight.data_ptr()]
    assert sum(p.numel() for p in net.parameters()) == sum(p.numel() for p in lm.parameters())
    assert all(name.startswith("lm.") for name in net.state_dict())
