from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from rlhf.algorithms.moments import Moments
from rlhf.algorithms.rewards import (
    kl_per_token,
    overlong_penalty,
    penalise_missing_eos,
    shape_scores,
    sum_by_sample,
    token_rewards,
)
from rlhf.config.schema import AlgorithmConfig
from rlhf.types import FinishReason


def floats(*values: float) -> np.ndarray:
    return np.array(values, dtype=np.float32)


def lengths(*values: int) -> np.ndarray:
    return np.array(values, dtype=np.int32)


def test_kl_and_rewards_agree_with_torchtune() -> None:
    """pytorch/torchtune, tests/torchtune/rlhf/test_rewards.py (get_rewards_ppo): three samples of three tokens."""
    logprobs = floats(0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.6, 0.7, 0.8)
    reference = floats(0.2, 0.3, 0.4, 0.6, 0.7, 0.8, 0.9, 1.0, 1.1)
    kl = kl_per_token(logprobs, reference)
    np.testing.assert_allclose(kl, [-0.1] * 3 + [-0.2] * 3 + [-0.3] * 3, atol=1e-6)
    rewards = token_rewards(floats(1, 2, 3), kl, lengths(3, 3, 3), np.ones(9, dtype=bool), kl_coef=0.5)
    np.testing.assert_allclose(rewards, [0.05, 0.05, 1.05, 0.1, 0.1, 2.1, 0.15, 0.15, 3.15], atol=1e-6)


@pytest.mark.parametrize(
    ("logprobs", "reference", "expected"),
    [
        # huggingface/trl v0.11, tests/test_ppo_trainer.py
        ([0.5, 0.2, 0.1, 0.6, 0.2, 0.1], [0.4, 0.3, 0.0, 0.7, 0.1, 0.3], [0.1, -0.1, 0.1, -0.1, 0.1, -0.2]),
        # NVIDIA-NeMo/RL, tests/unit/algorithms/test_loss_functions.py
        ([-1, -1, -1], [0, -15, -30], [-1, 14, 29]),
    ],
)
def test_kl_is_the_estimator_k1(logprobs: list[float], reference: list[float], expected: list[float]) -> None:
    np.testing.assert_allclose(kl_per_token(floats(*logprobs), floats(*reference)), expected, atol=1e-6)


def test_the_score_is_added_once_at_the_last_token_of_each_response() -> None:
    rewards = token_rewards(floats(7, -2, 5), floats(0, 0, 0, 0, 0, 0), lengths(3, 1, 2), np.ones(6, dtype=bool), 0.1)
    assert rewards.tolist() == [0, 0, 7, -2, 0, 5]


def test_the_score_goes_to_the_last_token_in_the_mask_and_garbage_outside_it_does_not_leak() -> None:
    mask = np.array([True, True, False, True, False, False, False])
    kl = floats(1, 2, np.nan, 4, np.inf, np.nan, np.nan)
    rewards = token_rewards(floats(10, 20, 30), kl, lengths(3, 2, 2), mask, kl_coef=0.5)
    assert rewards.tolist() == [-0.5, 9.0, 0.0, 18.0, 0.0, 0.0, 0.0]


def test_a_response_of_no_tokens_receives_nothing() -> None:
    assert token_rewards(floats(3, 4), floats(0), lengths(0, 1), np.ones(1, dtype=bool), 0.1).tolist() == [4.0]


REASONS = np.array([FinishReason.STOP, FinishReason.LENGTH, FinishReason.LENGTH], dtype=np.int32)


def test_the_penalty_replaces_the_score_of_a_response_without_an_end() -> None:
    scores = floats(0.5, 3.0, -4.0)
    assert penalise_missing_eos(scores, REASONS, AlgorithmConfig(missing_eos_penalty=1.5)).tolist() == [0.5, -1.5, -1.5]
    assert penalise_missing_eos(scores, REASONS, AlgorithmConfig(missing_eos_penalty=None)).tolist() == [0.5, 3, -4]


def test_or_the_penalty_is_taken_off_the_score() -> None:
    algorithm = AlgorithmConfig(missing_eos="subtract", missing_eos_penalty=1.5)
    assert penalise_missing_eos(floats(0.5, 3.0, -4.0), REASONS, algorithm).tolist() == [0.5, 1.5, -5.5]


def shaped(moments: Moments, **options: Any) -> np.ndarray:
    """2, −6 and 1 shaped: responses of 3, 10 and 4 tokens, the second without an end."""
    reasons = np.array([FinishReason.STOP, FinishReason.LENGTH, FinishReason.STOP], dtype=np.int32)
    scores = shape_scores(floats(2, -6, 1), floats(3, 10, 4), reasons, AlgorithmConfig(**options), moments, 20)
    assert scores.dtype == np.float32
    return scores


STD_2 = Moments(count=2, mean=0.0, squares=4.0)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"missing_eos_penalty": None}, [2, -6, 1]),
        ({"missing_eos_penalty": None, "reward_scale": "running_std"}, [1, -3, 0.5]),
        ({"missing_eos_penalty": None, "reward_clip": 1.5}, [1.5, -1.5, 1]),
        ({"missing_eos_penalty": None, "length_penalty": 0.1}, [1.7, -7, 0.6]),
        ({"missing_eos_penalty": None, "reward_scale": "running_std", "reward_clip": 2.0}, [1, -2, 0.5]),
        ({"missing_eos": "subtract", "missing_eos_penalty": 1.5, "reward_clip": 2.0}, [2, -3.5, 1]),
    ],
)
def test_each_shaping_by_hand(options: dict[str, Any], expected: list[float]) -> None:
    np.testing.assert_allclose(shaped(STD_2, **options), expected, rtol=1e-6)


@pytest.mark.parametrize(("how", "expected"), [("subtract", [0.7, -4.5, 0.1]), ("replace", [0.7, -2.5, 0.1])])
def test_scores_are_scaled_then_clipped_then_penalised(how: Any, expected: list[float]) -> None:
    """1, −3, .5 scaled; −2 clipped; .3, 1 and .4 off for the tokens; 1.5 off, or −1.5 in place of it."""
    options = {"reward_scale": "running_std", "reward_clip": 2.0, "length_penalty": 0.1, "missing_eos_penalty": 1.5}
    np.testing.assert_allclose(shaped(STD_2, missing_eos=how, **options), expected, rtol=1e-6)


@pytest.mark.parametrize("seen", [[], [5.0], [0.0] * 8, [1.0] * 8, [0.1] * 7, [-1e6] * 9])
def test_scores_that_do_not_vary_yet_have_no_scale(seen: list[float]) -> None:
    """A first batch in which every answer scores 1 must not become one of scores of 1e8."""
    moments = Moments().add(floats(*seen))
    assert shaped(moments, reward_scale="running_std", missing_eos_penalty=None).tolist() == [2, -6, 1]


def test_sums_are_by_sample_and_inside_the_mask() -> None:
    mask = np.array([True, False, True, True, False, True])
    sums = sum_by_sample(floats(1, np.nan, 2, 4, np.inf, 8), lengths(3, 0, 1, 2), mask)
    assert sums.tolist() == [3, 0, 4, 8]


def test_a_last_response_of_no_tokens_has_a_sum_too() -> None:
    """One number for every sample, whatever there is of it: what follows lines them up."""
    assert sum_by_sample(floats(1, 2), lengths(2, 0, 0), np.ones(2, dtype=bool)).tolist() == [3, 0, 0]
    assert sum_by_sample(floats(1, 2), lengths(0, 2), np.ones(2, dtype=bool)).tolist() == [0, 3]


def test_the_soft_overlong_punishment_by_hand() -> None:
    """DAPO, eq. 13, with the paper's own numbers: L_max = 20,480 and L_cache = 4,096."""
    responses = floats(1, 16384, 17408, 18432, 20479, 20480, 30000)
    expected = [0, 0, 0.25, 0.5, 4095 / 4096, 1, 1]
    np.testing.assert_allclose(overlong_penalty(responses, 4096, 20480), expected, rtol=1e-6)
    assert overlong_penalty(responses, None, 20480).tolist() == [0] * 7


def test_the_overlong_punishment_is_neither_scaled_nor_clipped() -> None:
    """Responses of 3, 10 and 4 tokens of at most 20, a buffer of 16: −1, 3 and .5 scaled and clipped, 6/16 off."""
    options = {"reward_scale": "running_std", "reward_clip": 2.0, "missing_eos_penalty": None, "overlong_buffer": 16}
    np.testing.assert_allclose(shaped(STD_2, **options), [1, -2 - 6 / 16, 0.5], rtol=1e-6)
