from __future__ import annotations

import math

import pytest
import torch
from torch import tensor

from rlhf.algorithms.losses import policy_loss, preference_loss, value_loss


def test_policy_loss_agrees_with_nemo() -> None:
    """NVIDIA-NeMo/RL, tests/unit/algorithms/test_loss_functions.py: ratios .5, 1, 1.5; per token −.5, 1, −2.4."""
    new, old = tensor([-1.69315, -1.0, -0.59453]), tensor([-1.0, -1.0, -1.0])
    terms = policy_loss(new, old, tensor([1.0, -1.0, 2.0]), clip_range=0.2)
    assert float(terms.loss) / 3 == pytest.approx(-0.6333, abs=1e-4)
    assert float(terms.loss) == pytest.approx(-0.5 + 1 - 2.4, abs=1e-4)
    assert float(terms.ratio) == pytest.approx(0.5 + 1 + 1.5, abs=1e-4)
    assert float(terms.ratio_squared) == pytest.approx(0.25 + 1 + 2.25, abs=1e-4)
    assert float(terms.approxkl) == pytest.approx(0.5 * (0.69315**2 + 0.40547**2), abs=1e-4)
    assert int(terms.clipped) == 1  # of the two ratios outside the range only one makes the loss larger


def test_policy_gradient_stops_where_the_clip_binds() -> None:
    """∂/∂log π of −Âρ is −Âρ; where the clipped term is the larger one it is 0."""
    new = torch.log(tensor([0.5, 0.5, 1.5, 1.5, 1.1])).requires_grad_()
    advantages = tensor([1.0, -1.0, 1.0, -1.0, 3.0])
    policy_loss(new, torch.zeros(5), advantages, clip_range=0.2).loss.backward()
    torch.testing.assert_close(new.grad, tensor([-0.5, 0.0, 0.0, 1.5, -3.3]))


def test_a_log_ratio_without_bounds_does_not_overflow() -> None:
    new = tensor([500.0, -500.0], requires_grad=True)
    terms = policy_loss(new, tensor([-500.0, 500.0]), tensor([-1.0, -1.0]), clip_range=0.2)
    terms.loss.backward()
    assert terms.loss.item() == pytest.approx(math.exp(20) + 0.8, rel=1e-6)  # clamped at +20; clipped at 1 − ε
    assert torch.isfinite(new.grad).all() and math.isfinite(float(terms.ratio_squared))


def test_no_tokens_no_loss() -> None:
    nothing = torch.zeros(0, requires_grad=True)
    terms = policy_loss(nothing, torch.zeros(0), torch.zeros(0), clip_range=0.2)
    terms.loss.backward()
    assert [t.item() for t in (terms.loss, terms.ratio, terms.approxkl, terms.clipped)] == [0, 0, 0, 0]


def test_value_loss_takes_the_worse_of_value_and_clipped_value() -> None:
    """By hand, ε_v = .2 around 1: V 1.5, R 1 → max(.25, .04); V 2, R 2 → max(0, .64); V 1.1 (in range), R 0 → 1.21."""
    values = tensor([1.5, 2.0, 1.1], requires_grad=True)
    terms = value_loss(values, tensor([1.0, 1.0, 1.0]), tensor([1.0, 2.0, 0.0]), clip_range=0.2)
    assert terms.loss.item() == pytest.approx(0.5 * (0.25 + 0.64 + 1.21))
    assert int(terms.clipped) == 1
    terms.loss.backward()
    torch.testing.assert_close(values.grad, tensor([0.5, 0.0, 1.1]))  # V − R, and 0 where the clip binds


def test_value_clip_holds_below_the_old_value_too() -> None:
    terms = value_loss(tensor([-3.0]), tensor([0.0]), tensor([-3.0]), clip_range=0.5)
    assert float(terms.loss) == pytest.approx(0.5 * 2.5**2)


def test_preference_loss_by_hand() -> None:
    """−log σ(x) = log(1 + e^−x): log 2 at 0, log(1 + 1/3) at log 3, log(1 + 3) at −log 3."""
    zero = torch.zeros(1)
    assert float(preference_loss(tensor([1.7]), tensor([1.7]), zero)) == pytest.approx(math.log(2))
    log3 = math.log(3)
    chosen, rejected = tensor([log3, 0.0, 2.0]), tensor([0.0, log3, 1.0])
    assert float(preference_loss(chosen, rejected, torch.zeros(3))) == pytest.approx(
        math.log(4 / 3) + math.log(4) + math.log(1 + math.exp(-1)), rel=1e-6
    )
    eaten_by_the_margin = preference_loss(tensor([1.0]), zero, tensor([1.0]))
    assert float(eaten_by_the_margin) == pytest.approx(math.log(2))


def test_preference_loss_is_finite_far_from_zero() -> None:
    chosen = tensor([-1e4, 1e4], requires_grad=True)
    loss = preference_loss(chosen, torch.zeros(2), torch.zeros(2))
    loss.backward()
    assert float(loss.detach()) == pytest.approx(1e4)
    torch.testing.assert_close(chosen.grad, tensor([-1.0, 0.0]))
