"""The project's functions against numbers that were not made here: ``oracles.py``, from ten other projects' tests.

What those projects test and this one has no use for is in ``NOT_APPLICABLE``, each with its reason: responses are
packed and never padded, an engine ends them at their end token, and it samples without top-k and top-p. Where this
project says a thing in another way the test says how: a value after the last step is a part of the last reward, an
episode that ends in the middle is two samples, and log-ratios are clamped at ±20.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rlhf.algorithms.advantages import generalised_advantages, whiten
from rlhf.algorithms.importance import importance_weights
from rlhf.algorithms.losses import LOG_RATIO_LIMIT, PolicyLoss, kl_loss, policy_loss
from rlhf.algorithms.moments import Moments
from rlhf.algorithms.normaliser import normaliser, token_weights
from rlhf.algorithms.rewards import kl_per_token, sum_by_sample, token_rewards
from rlhf.algorithms.state import next_kl_coef
from rlhf.config.schema import AdaptiveKLConfig, AlgorithmConfig, LossMean
from rlhf.models.logprobs import token_logprobs
from tests.rlhf.algorithms.oracles import ORACLES

FIXTURES = Path(__file__).parents[4] / "shared" / "oracles" / "fixtures.json"
"""Where the numbers came from; it stands beside the repository on some machines only."""

PADDING = "nothing is padded: sequences are packed end to end"
ENDS = "the engine ends a response at its end token; nothing is searched for or cut off afterwards"
SAMPLING = "sampling is without top-k and top-p, so that the trainer's log-probabilities are the sampler's"
NOT_APPLICABLE = {
    "kl/trl/abs": "|k1| is not offered: as a reward it has another optimum than the objective",
    "kl/nemo/k1/clamped": "k1 is a reward here and is not clamped: clamping changes the optimum",
    "util/openai/first_true": ENDS,
    "util/torchtune/truncate": ENDS,
    "util/openai/top_k": SAMPLING,
    "util/openai/top_p": SAMPLING,
    "util/trl/flush_left": PADDING,
    "util/trl/pad_left": PADDING,
    "util/trl/pad_right_multiple4": PADDING,
}

USED: set[str] = set()
"""The oracles that a test of this file takes."""


def oracles(*names: str) -> pytest.MarkDecorator:
    """Run the test once for each name."""
    USED.update(names)
    return pytest.mark.parametrize("name", names)


def flat(rows: Any) -> np.ndarray:
    """All rows end to end, in float32."""
    return np.array(rows, dtype=np.float32).ravel()


def tensor(rows: Any) -> torch.Tensor:
    return torch.from_numpy(flat(rows))


def lengths(rows: Sequence[Sequence[Any]]) -> np.ndarray:
    return np.array([len(row) for row in rows], dtype=np.int32)


def assert_close(found: Any, expected: Any, tol: float) -> None:
    np.testing.assert_allclose(found, flat(expected), rtol=0, atol=tol)


def gae(given: dict[str, Any], **changes: Any) -> tuple[np.ndarray, np.ndarray]:
    """Advantages and returns of the oracle's samples, packed; ``changes`` stand in place of what is given."""
    given = {"mask": np.ones_like(flat(given["rewards"])), **given, **changes}
    return generalised_advantages(
        flat(given["rewards"]),
        flat(given["values"]),
        lengths(given["rewards"]),
        flat(given["mask"]).astype(bool),
        given["gamma"],
        given["lam"],
    )


@oracles("gae/torchtune/returns", "gae/nemo/lam0", "gae/nemo/mc", "gae/miles/fully_masked")
def test_gae(name: str) -> None:
    oracle = ORACLES[name]
    found = dict(zip(("advantages", "returns"), gae(oracle.inputs), strict=True))
    for key, expected in oracle.expected.items():
        assert_close(found[key], expected, oracle.tol)


@oracles("gae/rlax/lam=1.0", "gae/rlax/lam=0.4")
def test_gae_with_a_value_after_the_last_step(name: str) -> None:
    """V after the last token is 0 here, so γV joins the last reward. Discount 0 ends an episode, and a sample."""
    oracle = ORACLES[name]
    for row, expected in enumerate(oracle.expected["advantages"]):
        rewards, values, discounts = (oracle.inputs[k][row] for k in ("rewards", "values_T_plus_1", "discounts"))
        gamma = max(discounts)
        bootstrapped = [*rewards[:-1], rewards[-1] + gamma * values[-1]]
        cut = discounts.index(0) + 1 if 0 in discounts else len(rewards)
        parts = [part for part in (slice(cut), slice(cut, None)) if rewards[part]]
        given = {"rewards": [bootstrapped[p] for p in parts], "values": [values[:-1][p] for p in parts]}
        advantages, _ = generalised_advantages(
            np.concatenate([flat(r) for r in given["rewards"]]),
            np.concatenate([flat(v) for v in given["values"]]),
            lengths(given["rewards"]),
            np.ones(len(rewards), dtype=bool),
            gamma,
            oracle.inputs["lam"],
        )
        assert_close(advantages, expected, oracle.tol)


@oracles("gae/miles/gap1")
def test_gae_skips_a_gap(name: str) -> None:
    oracle = ORACLES[name]
    advantages, _ = gae(oracle.inputs)
    assert_close(advantages, [oracle.expected["first"], 0, oracle.expected["last"]], oracle.tol)


@oracles("gae/miles/truncation_zero_bootstrap")
def test_gae_of_a_truncated_response(name: str) -> None:
    """The terminal number is the score, which this project adds to the last reward."""
    oracle = ORACLES[name]
    [rewards] = oracle.inputs["rewards"]
    advantages, _ = gae(oracle.inputs, rewards=[[*rewards[:-1], rewards[-1] + oracle.inputs["terminal"]]])
    assert_close(advantages, oracle.expected["advantages"], oracle.tol)


@oracles("gae/verl/invariance")
@pytest.mark.parametrize("garbage", [0.0, 1e6, -3.0, np.nan])
@pytest.mark.parametrize(("gamma", "lam"), [(0.0, 0.0), (0.37, 0.91), (1.0, 1.0)])
def test_gae_does_not_depend_on_values_at_masked_places(name: str, garbage: float, gamma: float, lam: float) -> None:
    oracle = ORACLES[name]
    mask = flat(oracle.inputs["mask"]).astype(bool)
    values = np.full((1, len(mask)), garbage)
    values[0, mask] = oracle.inputs["values_at_valid"]
    found = gae(oracle.inputs, values=values, gamma=gamma, lam=lam)
    clean = gae(oracle.inputs, values=np.where(mask, values, 0), gamma=gamma, lam=lam)
    np.testing.assert_array_equal(found, clean)
    assert np.abs(clean).sum() > 0


@oracles("reward/torchtune/get_rewards_ppo")
def test_token_rewards(name: str) -> None:
    oracle = ORACLES[name]
    given, sizes = oracle.inputs, lengths(oracle.inputs["logprobs"])
    kl = kl_per_token(flat(given["logprobs"]), flat(given["ref_logprobs"]))
    everywhere = np.ones(len(kl), dtype=bool)
    assert_close(kl, oracle.expected["kl"], oracle.tol)
    nothing, scores = np.zeros(3, dtype=np.float32), flat(given["scores"])
    assert_close(token_rewards(nothing, kl, sizes, everywhere, given["kl_coef"]), oracle.expected["kl_reward"], 1e-4)
    rewards = token_rewards(scores, kl, sizes, everywhere, given["kl_coef"])
    assert_close(rewards, oracle.expected["rewards"], oracle.tol)


def log_ratio(given: dict[str, Any]) -> torch.Tensor:
    return tensor(given["logprobs"]) - tensor(given["ref_logprobs"])


@oracles("kl/trl/k1", "kl/nemo/k1")
def test_k1_is_the_kl_of_the_reward(name: str) -> None:
    oracle = ORACLES[name]
    kl = kl_per_token(flat(oracle.inputs["logprobs"]), flat(oracle.inputs["ref_logprobs"]))
    assert_close(kl, oracle.expected["kl"], oracle.tol)


@oracles("kl/trl/mse_k2", "kl/nemo/k2", "kl/nemo/k2/clamped")
def test_k2_is_the_approximate_kl_between_old_and_new(name: str) -> None:
    """Log-ratios beyond ±20 count 20 here; an output clamp, where the oracle has one, is this test's own."""
    oracle = ORACLES[name]
    new, old = tensor(oracle.inputs["logprobs"]), tensor(oracle.inputs["ref_logprobs"])
    kl = policy_loss(new, old, torch.ones_like(new), 0.2, 0.2).approxkl.clamp(
        max=oracle.inputs.get("output_clamp", np.inf)
    )
    within = log_ratio(oracle.inputs).abs() <= LOG_RATIO_LIMIT
    assert_close(kl[within], tensor(oracle.expected["kl"])[within], oracle.tol)
    assert within.sum() >= 2
    if "output_clamp" in oracle.inputs:
        assert_close(kl, oracle.expected["kl"], oracle.tol)
    elif not within.all():
        assert kl[~within].tolist() == [LOG_RATIO_LIMIT**2 / 2]


@oracles("kl/nemo/k3", "kl/nemo/k3/clamped")
def test_k3_is_the_value_of_the_kl_loss(name: str) -> None:
    """Of a policy that is still the old one: ρ = 1. Clamps as in the test of k2."""
    oracle = ORACLES[name]
    new, ref = tensor(oracle.inputs["logprobs"]), tensor(oracle.inputs["ref_logprobs"])
    kl = kl_loss(new, new, ref).clamp(max=oracle.inputs.get("output_clamp", np.inf))
    within = log_ratio(oracle.inputs).abs() <= LOG_RATIO_LIMIT
    assert_close(kl[within], tensor(oracle.expected["kl"])[within], oracle.tol)
    assert within.sum() >= 2
    if "output_clamp" in oracle.inputs:
        assert_close(kl, oracle.expected["kl"], oracle.tol)


@oracles("kl/trl/full1", "kl/trl/full2")
def test_the_mean_of_both_estimators_is_the_kl_of_the_whole_distribution(name: str) -> None:
    oracle = ORACLES[name]
    p, q = flat(oracle.inputs["p"]), flat(oracle.inputs["q"])
    k1 = kl_per_token(np.log(p), np.log(q))
    k3 = kl_loss(torch.from_numpy(np.log(p)), torch.from_numpy(np.log(p)), torch.from_numpy(np.log(q))).numpy()
    assert_close([(p * k1).sum(), (p * k3).sum()], [oracle.expected["kl"]] * 2, oracle.tol)


def mean(losses: np.ndarray, mask: np.ndarray, sizes: np.ndarray, loss_mean: LossMean, longest: int = 3) -> float:
    """Σ w ℓ / n, as every loss of the project is averaged."""
    weights = token_weights(loss_mean, sizes, mask)
    return float((weights * losses).sum() / normaliser(loss_mean, sizes, mask, longest))


def ppo(given: dict[str, Any]) -> PolicyLoss:
    clip, dual = given["clip"], given.get("dual_clip")
    return policy_loss(tensor(given["new"]), tensor(given["old"]), tensor(given["adv"]), clip, clip, dual)


@oracles("ppo/nemo/clip", "ppo/nemo/dual_clip")
def test_policy_loss(name: str) -> None:
    oracle = ORACLES[name]
    terms, everywhere = ppo(oracle.inputs), np.ones(3, dtype=bool)
    loss = mean(terms.loss.numpy(), everywhere, lengths(oracle.inputs["adv"]), "token")
    assert loss == pytest.approx(oracle.expected["loss"], abs=oracle.tol)
    found = {"ratio": terms.ratio, "per_token": terms.loss}
    for key in found.keys() & oracle.expected.keys():
        assert_close(found[key], oracle.expected[key], oracle.tol)


@oracles("ppo/nemo/is")
def test_policy_loss_with_importance_weights(name: str) -> None:
    oracle = ORACLES[name]
    given, sizes, everywhere = oracle.inputs, lengths(oracle.inputs["adv"]), np.ones(3, dtype=bool)
    weights = importance_weights(flat(given["old"]), flat(given["rollout"]), sizes, everywhere, AlgorithmConfig())
    assert_close(weights, oracle.expected["is_weights"], oracle.tol)
    loss = mean(weights * ppo(given).loss.numpy(), everywhere, sizes, "token")
    assert loss == pytest.approx(oracle.expected["loss"], abs=oracle.tol)


@oracles("ppo/nemo/reinforce")
def test_on_the_first_pass_the_gradient_is_reinforces(name: str) -> None:
    """REINFORCE's loss −Â log π is linear in log π: its value is the gradient times log π."""
    oracle = ORACLES[name]
    new = tensor(oracle.inputs["new"]).requires_grad_()
    terms = policy_loss(new, new.detach(), tensor(oracle.inputs["adv"]), 0.2, 0.2)
    (terms.loss.sum() / 3).backward()
    assert float(new.grad @ new.detach()) == pytest.approx(oracle.expected["loss"], abs=oracle.tol)


@oracles("agg/openrlhf/token_mean", "agg/openrlhf/seq_mean")
def test_means_over_tokens_and_over_responses(name: str) -> None:
    oracle = ORACLES[name]
    losses, mask = flat(oracle.inputs["loss"]), flat(oracle.inputs["mask"]).astype(bool)
    sizes = lengths(oracle.inputs["loss"])
    loss_mean: LossMean = "token" if "token" in name else "sequence"
    assert mean(losses, mask, sizes, loss_mean) == pytest.approx(oracle.expected["value"], abs=oracle.tol)


@oracles("agg/openrlhf/grad_accum")
def test_micro_batches_are_divided_by_one_number(name: str) -> None:
    """The parts know their own samples alone, the normaliser all of them. The engine's share: zero/test_engine.py."""
    oracle = ORACLES[name]
    parts = list(zip(oracle.inputs["loss"], oracle.inputs["mask"], strict=True))
    sizes = np.concatenate([lengths(losses) for losses, _ in parts])
    mask = np.concatenate([flat(rows) for _, rows in parts]).astype(bool)
    weights = [token_weights("token", lengths(rows), flat(rows).astype(bool)) for _, rows in parts]
    total = sum(float((w * flat(losses)).sum()) for w, (losses, _) in zip(weights, parts, strict=True))
    assert total / normaliser("token", sizes, mask, 3) == pytest.approx(oracle.expected["value"], abs=oracle.tol)
    wrong = [mean(flat(losses), flat(rows).astype(bool), lengths(rows), "token") for losses, rows in parts]
    assert np.mean(wrong) == pytest.approx(oracle.expected["per_microbatch_mean_wrong"], abs=oracle.tol)


@oracles("metric/openrlhf/kl_names")
def test_signs_of_the_two_gaps(name: str) -> None:
    """Old against new, and engine against trainer: mean of the first less the second."""
    oracle = ORACLES[name]
    new, old, rollout = (flat(oracle.inputs[key]) for key in ("new", "old", "rollout"))
    assert kl_per_token(old, new).mean() == pytest.approx(oracle.expected["ppo_kl"], abs=oracle.tol)
    assert kl_per_token(rollout, old).mean() == pytest.approx(oracle.expected["vllm_kl"], abs=oracle.tol)


@oracles("stat/torchtune/var")
def test_mean_and_variance_inside_the_mask(name: str) -> None:
    """Whitening by mean 2 and variance 1 gives −1, 0, 1."""
    oracle = ORACLES[name]
    values, mask = flat(oracle.inputs["x"]), flat(oracle.inputs["mask"]).astype(bool)
    seen = Moments().add(values[mask])
    assert (seen.mean, seen.std**2) == pytest.approx((oracle.expected["mean"], oracle.expected["var"]), abs=oracle.tol)
    whitened = (values - oracle.expected["mean"]) / oracle.expected["var"] ** 0.5
    assert_close(whiten(values, mask), np.where(mask, whitened, 0), oracle.tol)


@oracles("stat/torchtune/rowmean")
def test_means_of_rows(name: str) -> None:
    oracle = ORACLES[name]
    mask, sizes = flat(oracle.inputs["mask"]).astype(bool), lengths(oracle.inputs["x"])
    sums = sum_by_sample(flat(oracle.inputs["x"]), sizes, mask)
    counts = sum_by_sample(np.ones_like(flat(oracle.inputs["x"])), sizes, mask)
    assert_close(sums / counts, oracle.expected["mean"], oracle.tol)


@oracles("stat/verl/mean", "stat/verl/mean_nan_masked", "stat/verl/mean_nan_kept")
def test_garbage_outside_the_mask_does_not_leak_and_inside_it_is_not_hidden(name: str) -> None:
    oracle = ORACLES[name]
    values, mask = flat([float(x) for x in oracle.inputs["x"]]), flat(oracle.inputs["mask"]).astype(bool)
    [found] = sum_by_sample(values, np.array([4], dtype=np.int32), mask) / mask.sum()
    assert found == pytest.approx(float(oracle.expected["mean"]), abs=oracle.tol, nan_ok=True)


@oracles("stat/trlx/running_moments")
def test_running_moments(name: str) -> None:
    oracle = ORACLES[name]
    named = {"arange(100)": np.arange(100), "ones(100)": np.ones(100), "exp(arange(10))": np.exp(np.arange(10))}
    seen = Moments()
    for batch, std in zip(oracle.inputs["batches"], oracle.expected["batch_std"], strict=True):
        values = named[batch] if isinstance(batch, str) else np.array(batch)
        assert Moments().add(values).std == pytest.approx(std, abs=oracle.tol)
        seen = seen.add(values)
    assert seen.mean == pytest.approx(oracle.expected["final_mean"], abs=oracle.tol)
    assert seen.std == pytest.approx(oracle.expected["final_std"], abs=oracle.tol)


@oracles("util/openai/label_logprobs")
def test_logprobs_of_labels(name: str) -> None:
    """A head that is the identity: hidden states are logits. Its −∞ is a logit of −1e30: ∞ · 0 is no number."""
    oracle = ORACLES[name]
    for case, expected in zip(oracle.inputs["cases"], oracle.expected["logprobs"], strict=True):
        logits = torch.tensor(np.array(case["logits"], dtype=np.float32)).clamp(min=-1e30)
        hidden, targets = logits.reshape(-1, logits.shape[-1]), torch.tensor(case["labels"]).reshape(-1)
        (logprobs,) = token_logprobs(hidden, lambda logits: logits, targets, 1.0, logits.shape[-1])
        assert_close(logprobs, expected, oracle.tol)


@oracles("kl/adaptive_controller")
def test_adaptive_kl(name: str) -> None:
    oracle = ORACLES[name]
    given = oracle.inputs
    config, beta = AdaptiveKLConfig(target=given["target"], horizon=given["horizon"]), given["init"]
    for sequence_kl, expected in zip(given["current"], oracle.expected["value"], strict=True):
        beta = next_kl_coef(beta, config, sequence_kl, given["n_steps"])
        assert beta == pytest.approx(expected, abs=oracle.tol)


def test_every_oracle_is_used() -> None:
    assert set(ORACLES) == USED
    assert not USED & NOT_APPLICABLE.keys()


def test_the_numbers_are_those_of_the_fixtures_and_none_is_left_out() -> None:
    if not FIXTURES.exists():
        pytest.skip("the fixtures that the numbers came from are not beside this repository")
    fixtures = {fixture["id"]: fixture for fixture in json.loads(FIXTURES.read_text(encoding="utf-8"))["fixtures"]}
    assert fixtures.keys() == ORACLES.keys() | NOT_APPLICABLE.keys()
    for name, oracle in ORACLES.items():
        assert vars(oracle) == {key: fixtures[name][key] for key in vars(oracle)}, name
