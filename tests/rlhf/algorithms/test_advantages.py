from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlhf.algorithms.advantages import generalised_advantages, whiten


def gae(
    rewards: list[float],
    values: list[float],
    gamma: float,
    lam: float,
    mask: list[int] | None = None,
    lengths: tuple[int, ...] = (),
) -> tuple[np.ndarray, np.ndarray]:
    """One sample, or several of the given lengths; every token is in the mask unless it says otherwise."""
    return generalised_advantages(
        np.array(rewards, dtype=np.float32),
        np.array(values, dtype=np.float32),
        np.array(lengths or (len(rewards),), dtype=np.int32),
        np.array(mask if mask is not None else [1] * len(rewards), dtype=bool),
        gamma,
        lam,
    )


def test_returns_agree_with_torchtune() -> None:
    """pytorch/torchtune, tests/torchtune/rlhf/test_rewards.py."""
    _, returns = gae([0, 0, 0, 1], [0, 0, 0, 1], gamma=0.9, lam=0.95)
    np.testing.assert_allclose(returns, [0.6579225, 0.7695, 0.9, 1.0], atol=1e-6)


def test_lambda_0_is_the_one_step_error() -> None:
    """NVIDIA-NeMo/RL, tests/unit/algorithms/test_ppo.py."""
    advantages, _ = gae([0, 0, 5], [1, 2, 3], gamma=1, lam=0)
    np.testing.assert_allclose(advantages, [1, 1, 2])


def test_lambda_1_is_the_whole_return_less_the_value() -> None:
    """NVIDIA-NeMo/RL, tests/unit/algorithms/test_ppo.py."""
    advantages, returns = gae([0, 0, 0, 1], [0.5] * 4, gamma=1, lam=1)
    np.testing.assert_allclose(advantages, [0.5] * 4)
    np.testing.assert_allclose(returns, [1] * 4)


@pytest.mark.parametrize(
    ("lam", "expected"),
    [
        (1.0, [-1.45118, -4.4557, 2.5396, 0.5249, -0.49, 3, 2, 1, 0, -4.9]),
        (0.4, [0.56731, -6.042, 2.3431, 0.815, -0.49, 1.725, 1.46, 1, 0, -4.9]),
    ],
)
def test_advantages_agree_with_rlax(lam: float, expected: list[float]) -> None:
    """google-deepmind/rlax, rlax/_src/multistep_test.py. The value after its last step is −1: −γ joins the last reward.

    The second row has an episode's end after the fourth step: here two samples, of 4 tokens and of 1.
    """
    first, _ = gae([0, 0, 1, 0, -0.5 - 0.99], [1, 4, -3, -2, -1], gamma=0.99, lam=lam)
    second, _ = gae([0, 0, 0, 0, 1 - 0.9], [-3, -2, -1, 0, 5], gamma=0.9, lam=lam, lengths=(4, 1))
    np.testing.assert_allclose(np.concatenate([first, second]), expected, atol=1e-3)


def test_a_truncated_response_has_no_value_after_its_last_token() -> None:
    """radixark/miles, tests/fast/backends/training_utils/test_ppo_gae_masks.py: 1.5 is the score at the last token."""
    advantages, _ = gae([0.1, -0.2, 0.3, 0.05 + 1.5], [0.4, -0.1, 0.25, 0.6], gamma=1, lam=1)
    np.testing.assert_allclose(advantages, [1.35, 1.75, 1.6, 0.95], atol=1e-6)


def test_a_gap_does_not_count_in_the_decay() -> None:
    """radixark/miles, the same file: .9 · .5 is taken once over the gap, not twice."""
    advantages, returns = gae([0, 0, 2], [0, 0, 0], gamma=0.9, lam=0.5, mask=[1, 0, 1])
    np.testing.assert_allclose(advantages, [0.9, 0, 2.0], atol=1e-6)
    np.testing.assert_allclose(returns, [0.9, 0, 2.0], atol=1e-6)


def test_a_fully_masked_sample_gives_zeros() -> None:
    """radixark/miles, the same file; here beside a sample that is not masked, which keeps its own numbers."""
    rewards, values = [1.0] * 4 + [0, 0, 5], [1.0, 2, np.nan, 4] + [1, 2, 3]
    advantages, returns = gae(rewards, values, gamma=1, lam=0, mask=[0] * 4 + [1] * 3, lengths=(4, 3))
    assert advantages.tolist() == [0, 0, 0, 0, 1, 1, 2]
    assert returns.tolist() == [0, 0, 0, 0, 2, 3, 5]


@given(gamma=st.floats(0, 1), lam=st.floats(0, 1), garbage=st.floats(width=32))
def test_nothing_depends_on_values_outside_the_mask(gamma: float, lam: float, garbage: float) -> None:
    """verl-project/verl, tests/trainer/ppo/test_core_algos_on_cpu.py (multi-turn): its rewards, mask and values."""
    mask = np.array([0, 0, 1, 1, 1, 0, 0, 1, 1, 0, 0], dtype=bool)
    rewards = np.array([0, 0, 0.1, 0.1, 0.1, 0, 0, 0.1, 1, 0, 0])
    values = np.full(11, garbage)
    values[mask] = [4, 5, 6, 7, 9]
    advantages, returns = gae(np.where(mask, rewards, garbage), values, gamma, lam, mask)
    alone, returns_alone = gae(rewards[mask], values[mask], gamma, lam)
    np.testing.assert_array_equal(advantages[mask], alone)
    np.testing.assert_array_equal(returns[mask], returns_alone)
    assert not advantages[~mask].any() and not returns[~mask].any()


@given(lengths=st.lists(st.integers(0, 6), min_size=1, max_size=5), seed=st.integers(0, 2**32 - 1))
def test_a_sample_does_not_see_its_neighbours(lengths: list[int], seed: int) -> None:
    random = np.random.default_rng(seed)
    rewards, values = random.normal(size=(2, sum(lengths)))
    mask = random.random(sum(lengths)) < 0.8
    together = np.stack(gae(rewards, values, 0.9, 0.8, mask, tuple(lengths)))
    begin = 0
    for length in lengths:
        part = slice(begin, begin + length)
        np.testing.assert_array_equal(
            together[:, part], np.stack(gae(rewards[part], values[part], 0.9, 0.8, mask[part]))
        )
        begin += length


def test_whitened_values_are_those_of_a_calculation_by_hand() -> None:
    """1, 2, 3 in the mask: mean 2 and unbiased variance 1 (pytorch/torchtune, tests/torchtune/rlhf/test_rewards.py)."""
    whitened = whiten(np.array([1, 2, 3, 4, 5], dtype=np.float32), np.array([1, 1, 1, 0, 0], dtype=bool))
    np.testing.assert_allclose(whitened, [-1, 0, 1, 0, 0], atol=1e-6)
    whitened = whiten(np.array([2, np.nan, 4, 4, 4, 5, 5, 7, 9], dtype=np.float32), np.arange(9) != 1)
    scale = (32 / 7) ** 0.5  # squared distances from the mean 5 add up to 32, over 8 values
    np.testing.assert_allclose(whitened, np.array([-3, 0, -1, -1, -1, 0, 0, 2, 4]) / scale, atol=1e-6)


def test_whitening_survives_values_that_do_not_vary() -> None:
    constant = np.full(4, 3.7, dtype=np.float32)
    assert whiten(constant, np.ones(4, dtype=bool)).tolist() == [0] * 4
    assert whiten(constant, np.array([0, 1, 0, 0], dtype=bool)).tolist() == [0] * 4
    assert whiten(constant, np.zeros(4, dtype=bool)).tolist() == [0] * 4
