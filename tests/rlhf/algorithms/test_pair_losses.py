"""The losses of IPO and ORPO calculated by hand, and IPO's optimum in closed form."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, tensor

from rlhf.algorithms.pair_losses import comparison_loss, ipo_loss, orpo_loss
from rlhf.config.schema import DPOConfig

LOG2, LOG3 = math.log(2), math.log(3)


def test_ipo_by_hand() -> None:
    """β = .25: h is to be 2. It is 0, 2 and 5, so 4 + 0 + 9; the reference shifts nothing but the log-ratios."""
    chosen, rejected = tensor([-3.0, -4.0, -1.0]), tensor([-5.0, -7.0, -9.0])
    ref_chosen, ref_rejected = tensor([-2.0, -5.0, -2.0]), tensor([-4.0, -6.0, -5.0])
    terms = ipo_loss(chosen, rejected, ref_chosen, ref_rejected, beta=0.25)
    assert float(terms.loss) == pytest.approx(4 + 0 + 9)
    assert float(terms.chosen_rewards) == pytest.approx(0.25 * (-1 + 1 + 1))
    assert float(terms.rejected_rewards) == pytest.approx(0.25 * (-1 - 1 - 4))
    assert int(terms.correct) == 2


def test_the_gradient_of_ipo_turns_at_the_margin() -> None:
    """∂/∂log π_c = 2 (h − 1/(2β)): at β = .5, of h = 0, 1 and 3, −2, 0 and 4."""
    chosen, zero = tensor([0.0, 1.0, 3.0], requires_grad=True), torch.zeros(3)
    ipo_loss(chosen, zero, zero, zero, beta=0.5).loss.backward()
    assert chosen.grad is not None and chosen.grad.tolist() == pytest.approx([-2, 0, 4])


def test_orpo_by_hand() -> None:
    """P_c = 1/2 and 3/4, P_r = 1/4 and 3/4: odds 1 over 1/3, σ(log 3) = 3/4, and equal ones, σ(0) = 1/2."""
    chosen, rejected = torch.log(tensor([0.5, 0.75])), torch.log(tensor([0.25, 0.75]))
    terms = orpo_loss(chosen, rejected, beta=0.1)
    assert float(terms.loss) == pytest.approx(LOG2 + math.log(4 / 3) + 0.1 * (math.log(4 / 3) + LOG2), rel=1e-6)
    assert float(terms.chosen_rewards) == pytest.approx(0.1 * (math.log(0.5) + math.log(0.75)), rel=1e-6)
    assert float(terms.rejected_rewards) == pytest.approx(0.1 * (math.log(0.25) + math.log(0.75)), rel=1e-6)
    assert int(terms.correct) == 1


def test_the_gradient_of_orpo_is_that_of_finite_differences() -> None:
    """The formula of the paper in P and odds, without logarithms of odds."""

    def plain(chosen: list[float], rejected: list[float]) -> float:
        total = 0.0
        for c, r in zip(chosen, rejected, strict=True):
            odds = [math.exp(x) / (1 - math.exp(x)) for x in (c, r)]
            total += -c - 0.3 * math.log(1 / (1 + odds[1] / odds[0]))
        return total

    values = [[-0.3, -2.0], [-1.0, -0.1]]
    chosen, rejected = (tensor(each).double().requires_grad_() for each in values)
    orpo_loss(chosen, rejected, beta=0.3).loss.backward()
    for side, given in enumerate((chosen, rejected)):
        for i in range(2):
            up, down = ([list(each) for each in values] for _ in range(2))
            up[side][i] += 1e-6
            down[side][i] -= 1e-6
            assert given.grad is not None
            assert float(given.grad[i]) == pytest.approx((plain(*up) - plain(*down)) / 2e-6, rel=1e-6)


@pytest.mark.parametrize("chosen", [0.0, -1e-12, -1e4])
def test_certain_and_hopeless_responses_have_a_finite_loss(chosen: float) -> None:
    certain, other = tensor([chosen], requires_grad=True), tensor([-2.0], requires_grad=True)
    for one, two in ((certain, other), (other, certain)):
        terms = orpo_loss(one, two, beta=0.1)
        terms.loss.backward()
        assert math.isfinite(float(terms.loss.detach()))
    assert certain.grad is not None and torch.isfinite(certain.grad).all()


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"loss": "dpo", "beta": 1.0}, math.log(4 / 3)),
        ({"loss": "dpo", "beta": 1.0, "label_smoothing": 0.1}, 0.397543),
        ({"loss": "ipo", "beta": 0.5}, (LOG3 - 1) ** 2),
        ({"loss": "orpo", "beta": 0.5}, LOG2 + 0.5 * math.log(4 / 3)),
    ],
)
def test_the_loss_is_the_recipes(options: dict[str, Any], expected: float) -> None:
    """log π = (log ½, log ¼); the reference makes h = log 3, and ORPO does not read it."""
    logprobs = torch.log(tensor([[0.5], [0.25]]))
    reference = logprobs - tensor([[LOG3], [0.0]])
    assert float(comparison_loss(logprobs, reference, DPOConfig(**options)).loss) == pytest.approx(expected, abs=1e-6)


def test_no_pairs_no_loss() -> None:
    nothing = torch.zeros(0, requires_grad=True)
    for terms in (ipo_loss(nothing, *[torch.zeros(0)] * 3, beta=0.1), orpo_loss(nothing, torch.zeros(0), beta=0.1)):
        terms.loss.backward()
        assert [t.item() for t in (terms.loss, terms.chosen_rewards, terms.rejected_rewards, terms.correct)] == [0] * 4


BETA, ANSWERS = 0.2, 8


def test_the_optimum_of_ipo_is_the_closed_form() -> None:
    """π* ∝ π_ref exp(p(y ≻ μ)/β), p(y ≻ μ) the probability to beat a uniformly drawn answer (Azar et al., section 5).

    The expected loss over all ordered pairs of answers, weighted by p(first ≻ second) of Bradley-Terry labels.
    """
    a = torch.arange(ANSWERS, dtype=torch.float64)
    reference, rewards = ((5 * a % 7) / 3).log_softmax(dim=0), 3 * a % 5
    wins = torch.sigmoid(rewards[:, None] - rewards)
    best = (reference + wins.mean(dim=1) / BETA).log_softmax(dim=0)
    logits = reference.clone().requires_grad_()
    optimizer = torch.optim.LBFGS([logits], max_iter=100, tolerance_change=1e-14, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        logprobs, total = logits.log_softmax(dim=0), logits.sum() * 0
        for i, j in [(i, j) for i in range(ANSWERS) for j in range(ANSWERS) if i != j]:
            total = total + wins[i, j] * ipo_loss(logprobs[i], logprobs[j], reference[i], reference[j], BETA).loss
        total.backward()
        return total

    assert float((reference.exp() - best.exp()).abs().max()) > 0.1  # policy and reference differ
    optimizer.step(closure)
    torch.testing.assert_close(logits.detach().softmax(dim=0), best.exp(), rtol=0, atol=1e-4)
