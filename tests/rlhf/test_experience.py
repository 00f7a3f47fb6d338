"""Two samples whose every number can be followed by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from rlhf.config.schema import AlgorithmConfig
from rlhf.errors import MachineryError
from rlhf.experience import Scored, build_experience, experience_metrics
from rlhf.types import FinishReason, RolloutBlock, Sequences


def floats(*values: float) -> np.ndarray:
    return np.array(values, dtype=np.float32)


def scored(**changes: Any) -> Scored:
    """Responses of 2 and 3 tokens; the second has no end token. k = [.5, −.25, 1, 0, .5]."""
    rollouts = RolloutBlock(
        sequences=Sequences.pack([([1, 2], [3, 4]), ([5], [6, 7, 8])]),
        logprobs=floats(-1, -2, -1, -1, -1.5),
        prompt_ids=np.array([0, 1]),
        weight_versions=np.array([3, 4]),
        finish_reasons=np.array([FinishReason.STOP, FinishReason.LENGTH], dtype=np.int32),
        seeds=np.array([0, 1]),
    )
    arrays = {
        "raw_scores": floats(2, 5),
        "old_logprobs": floats(-1, -2, -1, -1, -1),
        "ref_logprobs": floats(-1.5, -1.75, -2, -1, -1.5),
        "values": floats(0.5, 1, 0, 1, -1),
    }
    return Scored(rollouts=rollouts, **{**arrays, **changes})


PLAIN = AlgorithmConfig(kl_coef=0.2, gamma=1.0, lam=1.0, whiten_advantages=False, missing_eos_penalty=1.0)


def test_rewards_become_returns_and_advantages() -> None:
    """λ = γ = 1: a return is the sum of the rewards from there on. r = [−.1, 2.05 | −.2, 0, −1.1]."""
    experience = build_experience(scored(), PLAIN)
    assert experience.scores.tolist() == [2, -1]  # the penalty in place of 5
    np.testing.assert_allclose(experience.returns, [1.95, 2.05, -1.3, -1.1, -1.1], atol=1e-6)
    np.testing.assert_allclose(experience.advantages, [1.45, 1.05, -1.3, -2.1, -0.1], atol=1e-6)
    assert experience.response_mask.tolist() == [True] * 5


def test_advantages_are_whitened_over_the_batch_and_returns_are_not() -> None:
    plain = build_experience(scored(), PLAIN)
    experience = build_experience(scored(), AlgorithmConfig(kl_coef=0.2, gamma=1.0, lam=1.0))
    np.testing.assert_allclose(experience.advantages.mean(), 0, atol=1e-6)
    np.testing.assert_allclose(experience.advantages.var(ddof=1), 1, rtol=1e-6)
    # by hand: the mean of 1.45, 1.05, −1.3, −2.1, −.1 is −.2; squared distances add up to 9.115
    np.testing.assert_allclose(
        experience.advantages, np.array([1.65, 1.25, -1.1, -1.9, 0.1]) / (9.115 / 4) ** 0.5, rtol=1e-5
    )
    np.testing.assert_array_equal(experience.returns, plain.returns)


def test_metrics_by_hand() -> None:
    experience = build_experience(scored(), PLAIN)
    metrics = experience_metrics(experience, scored().raw_scores, kl_coef=0.2, version=5)
    expected = {
        "objective/kl": (0.25 + 1.5) / 2,
        "objective/logratio_abs_mean": (0.5 + 0.25 + 1 + 0 + 0.5) / 5,
        "objective/entropy": (3 + 3) / 2,
        "objective/scores": 0.5,
        "objective/scores_std": 1.5,
        "objective/raw_scores": 3.5,
        "objective/non_score_reward": -0.2 * 0.875,
        "objective/rlhf_reward": 0.5 - 0.2 * 0.875,
        "objective/rlhf_reward_std": (1.95 + 1.3) / 2,
        "objective/score_length_correlation": -1.0,
        "rollout/logprob_gap_mean": 0.1,
        "rollout/logprob_gap_max": 0.5,
        "rollout/length_mean": 2.5,
        "rollout/truncated_fraction": 0.5,
        "rollout/staleness_mean": 1.5,
        "rollout/tokens": 5.0,
    }
    assert {name: metrics[name] for name in expected} == pytest.approx(expected, abs=1e-6)


def test_explained_variance_is_1_for_a_perfect_critic_and_0_for_a_constant_one() -> None:
    def explained(values: np.ndarray) -> float:
        experience = build_experience(scored(values=values), PLAIN)
        return experience_metrics(experience, floats(0, 0), 0.2, 4)["critic/explained_variance"]

    assert explained(floats(1.95, 2.05, -1.3, -1.1, -1.1)) == pytest.approx(1, abs=1e-5)
    assert explained(floats(7, 7, 7, 7, 7)) == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize("name", ["raw_scores", "old_logprobs", "ref_logprobs", "values"])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_number_that_is_none_is_refused_by_name(name: str, bad: float) -> None:
    array = getattr(scored(), name).copy()
    array[1] = bad
    with pytest.raises(MachineryError, match=f"{name}: 1 of {array.size} numbers"):
        scored(**{name: array})
