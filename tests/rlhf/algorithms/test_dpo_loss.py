"""DPO's loss calculated by hand, and its optimum in closed form."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, tensor

from rlhf.algorithms.losses import dpo_loss

LOG3 = math.log(3)
BETA, PROMPTS, ANSWERS = 0.2, 4, 8


def test_an_untouched_policy_loses_log_2_whatever_the_reference_says() -> None:
    chosen, rejected = tensor([-3.0, -50.0, -7.0]), tensor([-9.0, -1.0, -7.0])
    terms = dpo_loss(chosen, rejected, chosen, rejected, beta=0.3, label_smoothing=0.2)
    assert float(terms.loss) == pytest.approx(3 * 0.693147, abs=1e-5)
    assert float(terms.chosen_rewards) == float(terms.rejected_rewards) == int(terms.correct) == 0


def test_loss_rewards_and_ranking_by_hand() -> None:
    """−log σ(x) = log(1 + e^−x): βh = log 3 and −log 3 give log 4/3 and log 4, at β = .5 from h = ±2 log 3."""
    chosen, rejected = tensor([-4.0 + LOG3, -6.0]), tensor([-5.0 - LOG3, -8.0 + 2 * LOG3])
    terms = dpo_loss(chosen, rejected, tensor([-4.0, -6.0]), tensor([-5.0, -8.0]), beta=0.5)
    assert float(terms.loss) == pytest.approx(math.log(4 / 3) + math.log(4), rel=1e-6)
    assert float(terms.chosen_rewards) == pytest.approx(0.5 * LOG3, rel=1e-6)
    assert float(terms.rejected_rewards) == pytest.approx(0.5 * (-LOG3 + 2 * LOG3), rel=1e-6)
    assert int(terms.correct) == 1


def test_label_smoothing_weighs_both_orders() -> None:
    """σ(log 3) = 3/4: −.9 log(3/4) − .1 log(1/4) = .397543."""
    terms = dpo_loss(tensor([LOG3]), tensor([0.0]), tensor([0.0]), tensor([0.0]), beta=1.0, label_smoothing=0.1)
    assert float(terms.loss) == pytest.approx(0.397543, abs=1e-6)


def test_the_gradient_is_beta_times_how_wrong_the_pair_is() -> None:
    """∂/∂log π_c = −β σ(−βh), the opposite for the rejected answer (Rafailov et al. 2023, section 4)."""
    chosen, rejected = tensor([0.0, LOG3], requires_grad=True), tensor([0.0, 0.0], requires_grad=True)
    dpo_loss(chosen, rejected, torch.zeros(2), torch.zeros(2), beta=1.0).loss.backward()
    torch.testing.assert_close(chosen.grad, tensor([-0.5, -0.25]))
    torch.testing.assert_close(rejected.grad, tensor([0.5, 0.25]))


def test_smoothing_turns_the_gradient_where_the_margin_fits_the_labels() -> None:
    """σ(βh) = 1 − e is the least loss: at e = 1/4 that is βh = log 3."""
    chosen = tensor([LOG3], requires_grad=True)
    zero = torch.zeros(1)
    dpo_loss(chosen, zero, zero, zero, beta=1.0, label_smoothing=0.25).loss.backward()
    assert float(chosen.grad) == pytest.approx(0.0, abs=1e-6)


def test_loss_and_gradient_are_finite_far_from_zero() -> None:
    chosen, zero = tensor([-1e5, 1e5], requires_grad=True), torch.zeros(2)
    terms = dpo_loss(chosen, zero, zero, zero, beta=0.1)
    terms.loss.backward()
    assert float(terms.loss.detach()) == pytest.approx(1e4)
    torch.testing.assert_close(chosen.grad, tensor([-0.1, 0.0]))


def test_no_pairs_no_loss() -> None:
    nothing = torch.zeros(0, requires_grad=True)
    terms = dpo_loss(nothing, torch.zeros(0), torch.zeros(0), torch.zeros(0), beta=0.1)
    terms.loss.backward()
    assert [t.item() for t in (terms.loss, terms.chosen_rewards, terms.rejected_rewards, terms.correct)] == [0] * 4


def bandit() -> tuple[Tensor, Tensor]:
    """(4, 8) log π_ref and rewards: prompts k with answers a of one token."""
    k, a = torch.arange(PROMPTS, dtype=torch.float64)[:, None], torch.arange(ANSWERS, dtype=torch.float64)
    return (((3 * k + 5 * a) % 7) / 3).log_softmax(dim=1), ((2 * k + 3 * a) % 5) / 4


def expected_loss(logits: Tensor, reference: Tensor, rewards: Tensor) -> Tensor:
    """The loss over all pairs of answers, each in both orders, weighted by σ(r_first − r_second): no sampling noise."""
    logprobs = logits.log_softmax(dim=1)
    first, second = torch.triu_indices(ANSWERS, ANSWERS, offset=1)
    total = logits.sum() * 0
    for k in range(PROMPTS):
        for i, j in [*zip(first, second, strict=True), *zip(second, first, strict=True)]:
            terms = dpo_loss(logprobs[k, i], logprobs[k, j], reference[k, i], reference[k, j], BETA)
            total = total + torch.sigmoid(rewards[k, i] - rewards[k, j]) * terms.loss
    return total


def test_the_optimum_on_a_bandit_is_the_closed_form() -> None:
    """With Bradley-Terry labels of a reward r the optimum is π ∝ π_ref exp(r/β), that of PPO with the same β.

    Figures: J* = β log Z = .707772, E[r] = .864339, KL = .782835.
    """
    reference, rewards = bandit()
    best = (reference + rewards / BETA).log_softmax(dim=1)
    logits = reference.clone().requires_grad_()
    optimizer = torch.optim.LBFGS([logits], max_iter=60, tolerance_change=1e-12, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = expected_loss(logits, reference, rewards)
        loss.backward()
        return loss

    assert float((reference.exp() - best.exp()).abs().max()) > 0.3  # policy and reference differ
    optimizer.step(closure)
    policy = logits.detach().log_softmax(dim=1)
    torch.testing.assert_close(policy.exp(), best.exp(), rtol=0, atol=1e-3)
    reward, kl = (policy.exp() * rewards).sum(1).mean(), (policy.exp() * (policy - reference)).sum(1).mean()
    assert float(reward) == pytest.approx(0.864339, abs=1e-3)
    assert float(kl) == pytest.approx(0.782835, abs=1e-3)
    assert float(reward - BETA * kl) == pytest.approx(0.707772, abs=1e-5)
