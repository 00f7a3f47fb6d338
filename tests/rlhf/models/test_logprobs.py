from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from rlhf.models import logprobs
from rlhf.models.logprobs import Entropy, token_logprobs

VOCABULARY, TEMPERATURE = 29, 0.7


@pytest.mark.parametrize("with_gradient", [False, True])
def test_no_more_than_a_chunk_of_logits_exists(with_gradient: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    rows, weight = [], torch.randn(3, 5)

    def counting(hidden: Tensor) -> Tensor:
        rows.append(len(hidden))
        return hidden @ weight

    monkeypatch.setattr(logprobs, "CHUNK", 4 * 5)
    hidden = torch.randn(10, 3, requires_grad=with_gradient)
    (found,) = token_logprobs(hidden, counting, torch.zeros(10, dtype=torch.long), 1.0, 5)
    assert rows == [4, 4, 2]
    if with_gradient:
        found.sum().backward()
        assert sorted(rows) == [2, 4, 4, 4, 4]  # made again, but for the last, with which the backward pass begins


def of_logits(logits: list[float], target: int, temperature: float = 1.0) -> tuple[float, float]:
    """Log-probability of the target and entropy, for a head that returns these logits."""
    logprob, entropy = token_logprobs(
        torch.zeros(1, 1),
        lambda hidden: torch.tensor([logits]),
        torch.tensor([target]),
        temperature,
        len(logits),
        "value",
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
    _, entropy = token_logprobs(
        hidden, lambda hidden: bias + 0 * hidden, torch.tensor([0]), temperature, len(logits), "trained"
    )
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
    targets = torch.arange(VOCABULARY)
    found, entropy = token_logprobs(hidden, lambda h: h @ weight.T, targets, TEMPERATURE, VOCABULARY, "value")
    assert found.dtype == entropy.dtype == torch.float32
    assert float(found.exp().sum()) == pytest.approx(1, abs=1e-5)  # a softmax in bfloat16 misses by about 1e-2


def by_autograd(logits: Tensor, targets: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Log-probabilities and entropies from PyTorch's own functions, which keep whole tensors."""
    distribution = torch.distributions.Categorical(logits=logits.float() / temperature)
    return distribution.log_prob(targets), distribution.entropy()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("block", [1, 3 * VOCABULARY, 2**20])
@pytest.mark.parametrize("wanted", ["none", "value", "trained"])
def test_values_and_gradients_are_those_of_autograd(
    wanted: Entropy, block: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logprobs, "BLOCK", block)
    random = torch.Generator().manual_seed(0)
    logits = (5 * torch.randn(7, VOCABULARY, generator=random)).to(dtype).requires_grad_()
    targets = torch.randint(0, VOCABULARY, (7,), generator=random)
    weights = torch.linspace(-1, 1, 7)
    found = token_logprobs(logits, lambda states: states, targets, TEMPERATURE, VOCABULARY, wanted)
    expected = by_autograd(logits, targets, TEMPERATURE)
    for one, other in zip(found, expected, strict=False):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)
    pairs = [*zip(found, expected, strict=False)][: 2 if wanted == "trained" else 1]
    one, other = (
        torch.autograd.grad(sum((weights.roll(i) * pair[side]).sum() for i, pair in enumerate(pairs)), logits)[0]
        for side in (0, 1)
    )
    assert one.dtype == dtype
    torch.testing.assert_close(one, other)


@pytest.mark.parametrize("wanted", ["none", "trained"])
def test_gradients_agree_with_differences(wanted: Entropy) -> None:
    logits = torch.randn(4, 6, dtype=torch.float64, requires_grad=True)
    targets = torch.tensor([0, 5, 2, 2])

    def of(states: Tensor) -> tuple[Tensor, ...]:
        return token_logprobs(states, lambda states: states, targets, TEMPERATURE, 6, wanted)

    assert torch.autograd.gradcheck(of, logits)


def test_an_impossible_target_keeps_the_gradient_finite() -> None:
    """log 0 = −∞ where a masked token was the target; the gradient of the others, −p, is unaffected."""
    logits = torch.tensor([[math.log(3), 0.0, -math.inf]], requires_grad=True)
    (found,) = token_logprobs(logits, lambda states: states, torch.tensor([2]), 1.0, 3)
    found.sum().backward()
    assert found.tolist() == [-math.inf]
    assert logits.grad[0].tolist() == pytest.approx([-0.75, -0.25, 1.0])


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_logits_that_are_no_numbers_show_in_every_value(bad: float) -> None:
    logprob, entropy = of_logits([0.0, bad, -math.inf], 0)
    assert math.isnan(logprob) and math.isnan(entropy)


def test_logits_of_any_size_lose_no_precision() -> None:
    """log σ(1) at an offset of 4096, where float32 keeps steps of 2⁻¹¹: the offset is taken off first."""
    found, entropy = of_logits([4097.0, 4096.0], 0)
    assert found == pytest.approx(-0.3132616875, abs=1e-7)
    assert entropy == pytest.approx(0.5822031, abs=1e-6)
