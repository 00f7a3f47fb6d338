from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, tensor

from rlhf.algorithms.losses import (
    PolicyLoss,
    cispo_loss,
    kl_estimate,
    kl_loss,
    kto_loss,
    label_loss,
    policy_loss,
    preference_loss,
    value_loss,
)


def test_policy_loss_agrees_with_nemo() -> None:
    """NVIDIA-NeMo/RL, tests/unit/algorithms/test_loss_functions.py: ratios .5, 1, 1.5; per token −.5, 1, −2.4."""
    new, old = tensor([-1.69315, -1.0, -0.59453]), tensor([-1.0, -1.0, -1.0])
    terms = policy_loss(new, old, tensor([1.0, -1.0, 2.0]), clip_low=0.2, clip_high=0.2)
    assert float(terms.loss.mean()) == pytest.approx(-0.6333, abs=1e-4)
    assert terms.loss.tolist() == pytest.approx([-0.5, 1, -2.4], abs=1e-4)
    assert terms.ratio.tolist() == pytest.approx([0.5, 1, 1.5], abs=1e-4)
    assert terms.approxkl.tolist() == pytest.approx([0.5 * 0.69315**2, 0, 0.5 * 0.40547**2], abs=1e-4)
    assert terms.clipped.tolist() == [0, 0, 1]  # of the two ratios outside the range only one makes the loss larger


def at_ratios(ratios: list[float], advantages: list[float], *options: float | None) -> tuple[PolicyLoss, list[float]]:
    """The loss of tokens with these ratios, and its gradient."""
    new = torch.log(tensor(ratios)).requires_grad_()
    terms = policy_loss(new, torch.zeros(len(ratios)), tensor(advantages), *options)
    terms.loss.sum().backward()
    return terms, new.grad.tolist()


def test_policy_gradient_stops_where_the_clip_binds() -> None:
    """∂/∂log π of −Âρ is −Âρ; where the clipped term is the larger one it is 0."""
    _, gradient = at_ratios([0.5, 0.5, 1.5, 1.5, 1.1], [1.0, -1.0, 1.0, -1.0, 3.0], 0.2, 0.2)
    assert gradient == pytest.approx([-0.5, 0.0, 0.0, 1.5, -3.3])


def test_the_clip_range_may_be_wider_above_than_below() -> None:
    """[.8, 1.5]: ratios 1.4 and 1.6 of a good token, .85 and .5 of a bad one."""
    terms, gradient = at_ratios([1.4, 1.6, 0.85, 0.5], [1.0, 1.0, -1.0, -1.0], 0.2, 0.5)
    assert terms.loss.tolist() == pytest.approx([-1.4, -1.5, 0.85, 0.8])
    assert gradient == pytest.approx([-1.4, 0, 0.85, 0])
    assert terms.clipped.tolist() == [0, 1, 0, 1]


def test_the_dual_clip_bounds_the_loss_of_a_bad_token() -> None:
    """c = 3: a bad token of ratio 10 costs 3|Â| and has no gradient; at 2.9, or where it is good, nothing changes."""
    ratios, advantages = [10.0, 2.9, 10.0, 0.5], [-4.0, -4.0, 4.0, -4.0]
    terms, gradient = at_ratios(ratios, advantages, 0.2, 0.2, 3.0)
    assert terms.loss.tolist() == pytest.approx([12, 11.6, -4.8, 3.2])
    assert gradient == pytest.approx([0, 11.6, 0, 0])
    assert terms.clipped.tolist() == [1, 0, 1, 1]
    open_ended, gradient = at_ratios(ratios, advantages, 0.2, 0.2)
    assert open_ended.loss.tolist() == pytest.approx([40, 11.6, -4.8, 3.2])
    assert gradient == pytest.approx([40, 11.6, 0, 0], rel=1e-5)


def test_a_dual_clip_inside_the_clip_range_would_take_gradients_that_the_range_allows() -> None:
    """Why such a recipe is refused: c = 1.1 with ε = .2, at a ratio of 1.15."""
    assert at_ratios([1.15], [-1.0], 0.2, 0.2, 1.1)[1] == [0]
    assert at_ratios([1.15], [-1.0], 0.2, 0.2, 1.2)[1] == pytest.approx([1.15])


def test_a_log_ratio_without_bounds_does_not_overflow() -> None:
    new = tensor([500.0, -500.0], requires_grad=True)
    terms = policy_loss(new, tensor([-500.0, 500.0]), tensor([-1.0, -1.0]), 0.2, 0.2)
    terms.loss.sum().backward()
    assert terms.loss.tolist() == pytest.approx([math.exp(20), 0.8], rel=1e-6)  # clamped at +20; clipped at 1 − ε
    assert torch.isfinite(new.grad).all() and torch.isfinite(terms.ratio.square()).all()


def of_sequences(new: Tensor, advantages: list[float], samples: Tensor, low: float, high: float) -> PolicyLoss:
    """GSPO's loss of tokens whose old log-probabilities are 0."""
    return policy_loss(new, torch.zeros(len(new)), tensor(advantages), low, high, None, samples)


def test_the_ratio_of_a_sequence_is_the_geometric_mean_of_its_tokens() -> None:
    """Ratios 4 and 1, 1/2, and 8, 1, 1: 2 for both tokens, 1/2, and 2 for all three, in any order of the tokens."""
    new = torch.log(tensor([4.0, 8.0, 1.0, 0.5, 1.0, 1.0])).requires_grad_()
    terms = of_sequences(new, [1, -1, 1, -1, -1, -1], tensor([0, 2, 0, 1, 2, 2]), 0.2, 0.5)
    assert terms.ratio.tolist() == pytest.approx([2, 2, 2, 0.5, 2, 2])
    # of a good response 1.5 at most; of a bad one −Âρ, where the ratio is below .8 at least .8
    assert terms.loss.tolist() == pytest.approx([-1.5, 2, -1.5, 0.8, 2, 2])
    assert terms.clipped.tolist() == [1, 0, 1, 1, 0, 0]
    terms.loss.sum().backward()
    assert new.grad.tolist() == pytest.approx([0, 2, 0, 0, 2, 2])
    log = torch.log(tensor([4.0, 8.0, 1.0, 0.5, 1.0, 1.0]))
    torch.testing.assert_close(terms.approxkl, log.square() / 2)  # of the tokens, as in all algorithms


def gspo_objective(new: Tensor, old: Tensor, advantages: list[float], low: float, high: float) -> float:
    """Zheng et al. (2025), eq. 5 and 7, written out for two responses of three tokens and two."""
    total = 0.0
    for part, advantage in zip((slice(0, 3), slice(3, 5)), advantages, strict=True):
        s = math.exp(sum((new - old)[part].tolist()) / (part.stop - part.start))
        total += min(s * advantage, min(max(s, 1 - low), 1 + high) * advantage)
    return total


@pytest.mark.parametrize("advantages", [[1.5, -0.5], [-1.0, 2.0]])
def test_the_gradient_of_gspo_is_that_of_its_objective(advantages: list[float]) -> None:
    """By finite differences; each token's loss has the weight 1/length."""
    new, old = tensor([-1.0, -2.0, -0.5, -0.7, -1.1]).double(), tensor([-1.1, -1.9, -0.9, -0.8, -1.3]).double()
    given = new.clone().requires_grad_()
    each = torch.repeat_interleave(tensor(advantages).double(), tensor([3, 2]))
    terms = policy_loss(given, old, each, 0.5, 0.5, None, tensor([0, 0, 0, 1, 1]))
    weights = tensor([1 / 3, 1 / 3, 1 / 3, 1 / 2, 1 / 2]).double()
    (weights * terms.loss).sum().backward()
    assert (weights * terms.loss).sum().item() == pytest.approx(-gspo_objective(new, old, advantages, 0.5, 0.5))
    for i in range(5):
        step = torch.zeros(5).double()
        step[i] = 1e-6
        up, down = (gspo_objective(new + sign * step, old, advantages, 0.5, 0.5) for sign in (1, -1))
        assert float(given.grad[i]) == pytest.approx(-(up - down) / 2e-6, rel=1e-6)


def test_cispo_limits_the_weight_of_a_token_and_keeps_its_gradient() -> None:
    """Weights .1, 1, 3 and, of 10, 1 + 4; ∂/∂log π of −w Â log π is −w Â, where PPO would have no gradient."""
    new = torch.log(tensor([0.1, 1.0, 3.0, 10.0])).requires_grad_()
    terms = cispo_loss(new, torch.zeros(4), tensor([1.0, -1.0, 1.0, 2.0]), 4.0)
    terms.loss.sum().backward()
    assert new.grad.tolist() == pytest.approx([-0.1, 1, -3, -10])
    assert terms.loss.tolist() == pytest.approx([-0.1 * math.log(0.1), 0, -3 * math.log(3), -10 * math.log(10)])
    assert terms.ratio.tolist() == pytest.approx([0.1, 1, 3, 10])
    assert terms.clipped.tolist() == [0, 0, 0, 1]
    assert terms.approxkl.tolist() == pytest.approx([0.5 * math.log(r) ** 2 for r in (0.1, 1, 3, 10)])


def test_no_tokens_no_loss() -> None:
    nothing = torch.zeros(0, requires_grad=True)
    assert cispo_loss(nothing, nothing, nothing, 4.0).loss.tolist() == []
    assert of_sequences(nothing, [], torch.zeros(0, dtype=torch.long), 0.2, 0.2).loss.tolist() == []
    terms = policy_loss(nothing, torch.zeros(0), torch.zeros(0), 0.2, 0.2, 3.0)
    (terms.loss.sum() + kl_loss(nothing, torch.zeros(0), torch.zeros(0)).sum()).backward()
    assert [t.sum().item() for t in (terms.loss, terms.ratio, terms.approxkl, terms.clipped)] == [0, 0, 0, 0]


def gradients_in_expectation(logits: Tensor, old: Tensor, ref: Tensor) -> dict[str, Tensor]:
    """Gradients by the logits, all actions counted by π_old, of what could be taken for the KL to the reference."""
    logits = logits.clone().requires_grad_()
    new = logits.log_softmax(0)
    x = ref - new
    losses = {
        "ours": (old.exp() * kl_loss(new, old, ref)).sum(),
        "k1": (old.exp() * (new - ref)).sum(),
        "k3": (old.exp() * (x.exp() - 1 - x)).sum(),
        "exact": (new.exp() * (new - ref)).sum(),
    }
    return {name: torch.autograd.grad(loss, logits, retain_graph=True)[0] for name, loss in losses.items()}


@pytest.mark.parametrize(("old", "k1", "k3"), [((0.75, 0.25), 0.0, 0.25), ((0.5, 0.5), -0.25, 5 / 12)])
def test_the_gradient_of_the_kl_by_hand_where_k1s_and_k3s_are_others(
    old: tuple[float, float], k1: float, k3: float
) -> None:
    """π_new = (¾, ¼), π_ref = (½, ½), ∂ log π_new/∂θ = (¼, −¾) of the first logit θ.

    Exactly, also after a move away from π_old: ¾ · ln(3/2) · ¼ + ¼ · ln(1/2) · −¾ = 3/16 ln 3. k1: Σ π_old (¼, −¾).
    k3: Σ π_old (1 − π_ref/π_new) (¼, −¾), 1 − π_ref/π_new = (⅓, −1): with π_old = π_new the forward KL's ¾ − ½.
    """
    found = gradients_in_expectation(tensor([math.log(3), 0.0]), tensor(old).log(), tensor([0.5, 0.5]).log())
    assert found["ours"][0].item() == pytest.approx(3 / 16 * math.log(3), rel=1e-5)
    assert found["k1"][0].item() == pytest.approx(k1, abs=1e-6)
    assert found["k3"][0].item() == pytest.approx(k3, rel=1e-5)


@pytest.mark.parametrize("seed", range(5))
def test_the_gradient_of_the_kl_is_the_exact_one_wherever_the_policy_has_moved(seed: int) -> None:
    random = torch.Generator().manual_seed(seed)
    logits, old, ref = (torch.randn(6, generator=random, dtype=torch.float64) for _ in range(3))
    for start in (logits, old):
        found = gradients_in_expectation(logits, start.log_softmax(0), ref.log_softmax(0))
        torch.testing.assert_close(found["ours"], found["exact"], rtol=1e-9, atol=1e-12)
        assert (found["k1"] - found["exact"]).abs().max() > 0.01
        assert (found["k3"] - found["exact"]).abs().max() > 0.01


def test_the_value_of_the_kl_is_never_negative_and_right_in_expectation() -> None:
    """ρ = 1 and π_ref/π_new = e, 1, 1/e: k3 = e − 2, 0, 1/e; with ρ = 2 twice that."""
    new, ref = tensor([-1.0, -1.0, -1.0]), tensor([0.0, -1.0, -2.0])
    k3 = [math.e - 2, 0, 1 / math.e]
    assert kl_loss(new, new, ref).tolist() == pytest.approx(k3, rel=1e-5)
    assert kl_loss(new, new - math.log(2), ref).tolist() == pytest.approx([2 * k for k in k3], rel=1e-5)
    p, old, half = tensor([0.75, 0.25]), tensor([0.1, 0.9]), tensor([0.5, 0.5])
    kl = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
    assert float((old * kl_loss(p.log(), old.log(), half.log())).sum()) == pytest.approx(kl, rel=1e-5)


E20 = 485165195.40979
"""e^20. Beyond ±20 a log-ratio counts as ±20."""


@pytest.mark.parametrize(
    ("x", "value", "gradient"),
    [
        (0.0, 0.0, 0.0),
        (1e-4, 5.00017e-9, -1e-4),  # x²/2 + x³/6: e^x − 1 − x in float32 would be 0 or −6e-8
        (-1e-4, 4.99983e-9, 1e-4),
        (12.0, 162741.79, -12.0),  # 162754.79 − 13
        (19.5, 294267545.9, -19.5),  # 294267566.4 − 20.5; there the numbers of float32 are 32 apart
        (-19.5, 18.5, 19.5),  # 3.4e-9 − 1 + 19.5
        (20.5, E20 - 21, -20.0),
        (100.0, E20 - 21, -20.0),
        (-20.5, 19.0, 20.0),
        (-100.0, 19.0, 20.0),
    ],
)
@pytest.mark.parametrize(("moved", "ratio"), [(0.0, 1.0), (math.log(2), 2.0), (20.5, E20), (-20.5, 1 / E20)])
def test_the_clamp_bounds_the_kl_and_its_gradient_and_keeps_their_signs(
    x: float, value: float, gradient: float, moved: float, ratio: float
) -> None:
    """ρ (e^x − 1 − x) and −ρ x, x = log π_ref − log π_new, both log-ratios at most 20 apart from 0."""
    new = tensor([-1.0], requires_grad=True)
    old, ref = tensor([-1.0 - moved]), tensor([-1.0 + x], dtype=torch.float64)
    loss = kl_loss(new.double(), old.double(), ref)
    loss.sum().backward()
    assert loss.item() == pytest.approx(ratio * value, rel=1e-5)
    assert new.grad.item() == pytest.approx(ratio * gradient, rel=1e-5)


def test_the_gradient_of_the_kl_is_right_in_float32_where_e_to_the_x_has_no_decimals() -> None:
    """At x = 12, 16, 19 the numbers of float32 near e^x are 1/64, 1 and 16 apart."""
    new = tensor([-12.0, -16.0, -19.0], requires_grad=True)
    loss = kl_loss(new, new.detach(), torch.zeros(3))
    loss.sum().backward()
    assert new.grad.tolist() == [-12.0, -16.0, -19.0]


def test_the_value_of_the_kl_is_right_in_float32_where_it_is_smaller_than_a_step_of_it() -> None:
    """x²/2 + x³/6. Of e^x − 1 − x at x = ±.001 rounding to steps of 1.2e-7 and 6e-8 would leave 5% and more."""
    zero = torch.zeros(3)
    found = kl_loss(zero, zero, tensor([1e-3, -1e-3, 1e-4]))
    assert found.tolist() == pytest.approx([5.001667e-7, 4.998333e-7, 5.000167e-9], rel=1e-3)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_what_is_no_number_stays_none(bad: float) -> None:
    """A clamp would turn an infinity into a finite loss."""
    one = torch.ones(1)
    assert policy_loss(tensor([bad]), one, one, 0.2, 0.2).loss.isnan().all()
    assert kl_loss(tensor([bad]), one, one).isnan().all()


@pytest.mark.parametrize("gap", [20.5, 100.0])
def test_a_bad_token_that_became_far_too_likely_is_still_pushed_down(gap: float) -> None:
    """Â = −1: −Âρ at ρ = e^20, whose gradient is as large. A good token there, or a bad one far below, is clipped."""
    new = tensor([gap, gap, -gap, -gap], requires_grad=True)
    terms = policy_loss(new, torch.zeros(4), tensor([-1.0, 1.0, -1.0, 1.0]), 0.2, 0.2)
    terms.loss.sum().backward()
    assert terms.loss.tolist() == pytest.approx([E20, -1.2, 0.8, -1 / E20])
    assert new.grad.tolist() == pytest.approx([E20, 0, 0, -1 / E20])
    assert terms.approxkl.tolist() == pytest.approx([200.0] * 4)  # ½ · 20²
    assert terms.clipped.tolist() == [0, 1, 1, 0]
    bounded_by_three = policy_loss(new, torch.zeros(4), tensor([-1.0, 1.0, -1.0, 1.0]), 0.2, 0.2, 3.0)
    assert bounded_by_three.loss.tolist() == pytest.approx([3, -1.2, 0.8, -1 / E20])


def test_value_loss_takes_the_worse_of_value_and_clipped_value() -> None:
    """By hand, ε_v = .2 around 1: V 1.5, R 1 → max(.25, .04); V 2, R 2 → max(0, .64); V 1.1 (in range), R 0 → 1.21."""
    values = tensor([1.5, 2.0, 1.1], requires_grad=True)
    terms = value_loss(values, tensor([1.0, 1.0, 1.0]), tensor([1.0, 2.0, 0.0]), clip_range=0.2)
    assert terms.loss.tolist() == pytest.approx([0.5 * 0.25, 0.5 * 0.64, 0.5 * 1.21])
    assert terms.clipped.tolist() == [0, 1, 0]
    terms.loss.sum().backward()
    torch.testing.assert_close(values.grad, tensor([0.5, 0.0, 1.1]))  # V − R, and 0 where the clip binds


def test_value_clip_holds_below_the_old_value_too() -> None:
    terms = value_loss(tensor([-3.0]), tensor([0.0]), tensor([-3.0]), clip_range=0.5)
    assert float(terms.loss) == pytest.approx(0.5 * 2.5**2)


def test_without_a_range_the_value_is_not_clipped() -> None:
    values = tensor([1.5, 2.0, 1.1], requires_grad=True)
    terms = value_loss(values, tensor([1.0, 1.0, 1.0]), tensor([1.0, 2.0, 0.0]), clip_range=None)
    assert terms.loss.tolist() == pytest.approx([0.5 * 0.25, 0, 0.5 * 1.21])
    assert terms.clipped.tolist() == [0, 0, 0]
    terms.loss.sum().backward()
    torch.testing.assert_close(values.grad, tensor([0.5, 0.0, 1.1]))


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


def test_label_loss_by_hand() -> None:
    rewards, is_good = tensor([0.0, 2.0, 2.0, -1.0]), torch.tensor([True, True, False, False])
    # ln 2, ln(1 + e⁻²), ln(1 + e²), ln(1 + e⁻¹)
    assert float(label_loss(rewards, is_good)) == pytest.approx(0.693147 + 0.126928 + 2.126928 + 0.313262, abs=1e-5)
    rewards = tensor([50.0, -50.0]).requires_grad_()
    label_loss(rewards, torch.tensor([False, False])).backward()
    assert rewards.grad is not None and rewards.grad.tolist() == pytest.approx([1.0, 0.0])


def test_kto_loss_by_hand() -> None:
    policy, reference = tensor([-10.0, -12.0, -8.0]), tensor([-11.0, -11.0, -8.0])  # h = 1, −1, 0
    terms = kto_loss(policy, reference, torch.tensor([True, False, True]), kl=0.5, beta=2.0, weights=(1.0, 3.0))
    # good, h − z = ½: 1 − σ(1) = .268941; bad, z − h = 1½: 3 (1 − σ(3)) = 3 × .047426; good, −½: 1 − σ(−1) = .731059
    assert float(terms.loss) == pytest.approx(0.268941 + 3 * 0.047426 + 0.731059, abs=1e-5)
    assert terms.rewards.tolist() == [2.0, -2.0, 0.0]
    assert int(terms.correct) == 2


def test_kto_starts_at_half_its_weights_and_pushes_each_answer_to_its_side() -> None:
    policy = torch.zeros(2, requires_grad=True)
    terms = kto_loss(policy, torch.zeros(2), torch.tensor([True, False]), kl=0.0, beta=0.1, weights=(1.0, 2.0))
    assert terms.loss.item() == pytest.approx(0.5 + 1.0)
    terms.loss.backward()
    assert policy.grad is not None
    assert policy.grad.tolist() == pytest.approx([-0.1 / 4, 2 * 0.1 / 4])  # ∓ λ β σ'(0)


def test_the_estimate_of_the_kl_divergence_is_a_mean_and_never_negative() -> None:
    assert kl_estimate(6.0, 4) == 1.5
    assert kl_estimate(-6.0, 4) == 0.0
