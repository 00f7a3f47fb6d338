from __future__ import annotations

import tracemalloc
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlhf.algorithms.advantages import (
    estimate_advantages,
    generalised_advantages,
    group_advantages,
    returns_to_go,
    uniform_groups,
    whiten,
)
from rlhf.config.schema import AlgorithmConfig, AlgorithmName


def gae(
    rewards: list[float],
    values: list[float],
    gamma: float,
    lam: float,
    mask: list[int] | None = None,
    lengths: tuple[int, ...] = (),
) -> tuple[np.ndarray, np.ndarray]:
    """GAE of one sample, or of several of the given lengths; by default every token is inside the mask."""
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


def dense_gae(r: np.ndarray, v: np.ndarray, lengths: list[int], gamma: float, lam: float) -> tuple[np.ndarray, ...]:
    """The recursion as the paper writes it, token by token, in float64."""
    advantages = np.zeros(len(r))
    ends = np.cumsum(lengths) - 1
    for t in reversed(range(len(r))):
        is_last = t in ends
        delta = r[t] + gamma * (0.0 if is_last else v[t + 1]) - v[t]
        advantages[t] = delta + gamma * lam * (0.0 if is_last else advantages[t + 1])
    return advantages.astype(np.float32), (advantages + v).astype(np.float32)


@given(
    lengths=st.lists(st.integers(1, 9), min_size=1, max_size=7),
    gamma=st.floats(0, 1),
    lam=st.floats(0, 1),
    seed=st.integers(0, 2**32 - 1),
)
def test_the_last_bits_are_those_of_the_recursion_token_by_token(
    lengths: list[int], gamma: float, lam: float, seed: int
) -> None:
    rewards, values = np.random.default_rng(seed).normal(size=(2, sum(lengths))).astype(np.float32)
    found = gae(rewards, values, gamma, lam, lengths=tuple(lengths))
    expected = dense_gae(rewards.astype(np.float64), values.astype(np.float64), lengths, gamma, lam)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one, other)


def test_one_long_response_among_many_short_ones_costs_only_its_own_tokens() -> None:
    """A dense array of samples by longest response would be 20,001 × 50,000 numbers of 8 bytes."""
    lengths = np.array([50_000, *[1] * 20_000], dtype=np.int32)
    rewards = np.zeros(lengths.sum(), dtype=np.float32)
    rewards[49_999:] = 2.0
    tracemalloc.start()
    advantages, _ = generalised_advantages(rewards, np.zeros_like(rewards), lengths, rewards > -1, 1.0, 1.0)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert advantages.tolist() == [2.0] * 70_000
    assert peak < 200 * len(rewards), "bytes a token"


def test_whitened_values_are_those_of_a_calculation_by_hand() -> None:
    """1, 2, 3 in the mask: mean 2 and unbiased variance 1 (pytorch/torchtune, tests/torchtune/rlhf/test_rewards.py)."""
    whitened = whiten(np.array([1, 2, 3, 4, 5], dtype=np.float32), np.array([1, 1, 1, 0, 0], dtype=bool))
    np.testing.assert_allclose(whitened, [-1, 0, 1, 0, 0], atol=1e-6)
    whitened = whiten(np.array([2, np.nan, 4, 4, 4, 5, 5, 7, 9], dtype=np.float32), np.arange(9) != 1)
    scale = (32 / 7) ** 0.5  # squared distances from the mean 5 add up to 32, over 8 values
    np.testing.assert_allclose(whitened, np.array([-3, 0, -1, -1, -1, 0, 0, 2, 4]) / scale, atol=1e-6)
    whitened = whiten(np.array([1, 3], dtype=np.float32), np.ones(2, dtype=bool))
    np.testing.assert_allclose(whitened, np.array([-1, 1]) / np.sqrt(2), atol=1e-6)  # the variance of two is 2


def test_whitening_survives_values_that_do_not_vary() -> None:
    constant = np.full(4, 3.7, dtype=np.float32)
    assert whiten(constant, np.ones(4, dtype=bool)).tolist() == [0] * 4
    assert whiten(constant, np.array([0, 1, 0, 0], dtype=bool)).tolist() == [0] * 4
    assert whiten(constant, np.zeros(4, dtype=bool)).tolist() == [0] * 4


def test_returns_to_go_by_hand() -> None:
    """A token's return-to-go sums the later rewards of its response, across a gap in the mask too."""
    rewards = np.array([1, 2, np.nan, 4, 8, 16], dtype=np.float32)
    mask = np.array([1, 1, 0, 1, 1, 1], dtype=bool)
    assert returns_to_go(rewards, np.array([4, 2], np.int32), mask).tolist() == [7, 6, 0, 4, 24, 16]


GROUP = ["grpo", "dr_grpo", "rloo", "reinforce++_baseline"]
ROOT = (14 / 3) ** 0.5
"""Standard deviation of 1, 2, 3, 6: squared distances from 3 add up to 14, over 4 − 1."""


def grouped(
    name: AlgorithmName, totals: list[float], prompts: list[int], counts: list[int] | None = None
) -> np.ndarray:
    return group_advantages(
        name,
        np.array(totals, dtype=np.float32),
        np.array(prompts, dtype=np.int64),
        np.array(counts if counts is not None else [1] * len(totals), dtype=bool),
    )


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("grpo", [-2 / (ROOT + 1e-4), -1 / (ROOT + 1e-4), 0, 3 / (ROOT + 1e-4)]),
        ("dr_grpo", [-2, -1, 0, 3]),
        ("reinforce++_baseline", [-2, -1, 0, 3]),
        ("rloo", [1 - 11 / 3, 2 - 10 / 3, 3 - 9 / 3, 6 - 6 / 3]),  # less the mean of the others
    ],
)
def test_a_group_by_hand(name: AlgorithmName, expected: list[float]) -> None:
    np.testing.assert_allclose(grouped(name, [1, 2, 3, 6], [5] * 4), expected, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("name", GROUP)
def test_groups_lie_anywhere_in_the_batch(name: AlgorithmName) -> None:
    """1, 2, 3, 6 of one prompt and 10, 20 of another, interleaved."""
    spread = grouped(name, [6, 20, 1, 3, 10, 2], [9, 4, 9, 9, 4, 9])
    np.testing.assert_array_equal(spread[[2, 5, 3, 0]], grouped(name, [1, 2, 3, 6], [9] * 4))
    np.testing.assert_array_equal(spread[[4, 1]], grouped(name, [10, 20], [4] * 2))
    assert spread[1] > 0 > spread[4]


@pytest.mark.parametrize("name", GROUP)
def test_a_dropped_sample_is_in_no_mean(name: AlgorithmName) -> None:
    found = grouped(name, [1, np.nan, 2, 3, 1e9, 6], [0] * 6, [1, 0, 1, 1, 0, 1])
    np.testing.assert_array_equal(found[[0, 2, 3, 5]], grouped(name, [1, 2, 3, 6], [0] * 4))
    assert found[[1, 4]].tolist() == [0, 0]


@pytest.mark.parametrize("name", GROUP)
@pytest.mark.parametrize("score", [0.0, 0.1, -3.7, 1e6])
def test_a_group_of_equal_scores_teaches_nothing(name: AlgorithmName, score: float) -> None:
    np.testing.assert_allclose(grouped(name, [score] * 7, [0] * 7), 0, atol=1e-6)


@pytest.mark.parametrize("name", GROUP)
def test_the_only_one_left_of_a_group_teaches_nothing(name: AlgorithmName) -> None:
    assert grouped(name, [3, 5, 7], [0, 0, 1], [1, 0, 0]).tolist() == [0, 0, 0]
    assert grouped(name, [3, 5], [0, 0], [0, 0]).tolist() == [0, 0]


@given(scores=st.lists(st.floats(-100, 100, width=32), min_size=2, max_size=9), shift=st.integers(-50, 50))
def test_a_shift_of_all_scores_changes_no_advantage(scores: list[float], shift: int) -> None:
    for name in ("dr_grpo", "rloo"):
        plain = grouped(name, scores, [0] * len(scores))
        np.testing.assert_allclose(grouped(name, [s + shift for s in scores], [0] * len(scores)), plain, atol=1e-3)
        assert abs(float(plain.sum())) < 1e-3


SCORES, REWARDS = [2.0, -1.0], [-0.1, 2.05, -0.2, 0.0, -1.1]
"""Two responses to one prompt, of 2 and 3 tokens; the KL is in the rewards. Totals 1.95 and −1.3, mean score .5."""


def estimated(name: AlgorithmName, mask: list[int] | None = None, **changes: Any) -> np.ndarray:
    arguments = {"scores": SCORES, "token_rewards": REWARDS, **changes}
    return estimate_advantages(
        AlgorithmConfig(name=name),
        np.array(arguments["scores"], dtype=np.float32),
        np.array(arguments["token_rewards"], dtype=np.float32),
        np.array([3, 3]),
        np.array([2, 3], dtype=np.int32),
        np.array(mask or [1] * 5, dtype=bool),
    )


STD = (2 * 1.625**2) ** 0.5


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("grpo", [1.625 / (STD + 1e-4)] * 2 + [-1.625 / (STD + 1e-4)] * 3),
        ("dr_grpo", [1.625] * 2 + [-1.625] * 3),
        ("rloo", [3.25] * 2 + [-3.25] * 3),
        ("reinforce++", [1.95, 2.05, -1.3, -1.1, -1.1]),
        ("reinforce++_baseline", [1.45, 1.55, -1.8, -1.6, -1.6]),  # less the group's mean score
    ],
)
def test_advantages_without_a_critic_by_hand(name: AlgorithmName, expected: list[float]) -> None:
    found = estimated(name)
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    assert found.dtype == np.float32


@pytest.mark.parametrize("name", ["grpo", "dr_grpo", "rloo", "reinforce++", "reinforce++_baseline"])
def test_advantages_without_a_critic_do_not_see_what_is_outside_the_mask(name: AlgorithmName) -> None:
    garbage = [-0.1, 2.05, np.nan, np.inf, np.nan]
    gone = estimated(name, [1, 1, 0, 0, 0], token_rewards=garbage, scores=[2.0, np.nan])
    alone = {"reinforce++": [1.95, 2.05], "reinforce++_baseline": [1.95 - 2, 2.05 - 2]}.get(name, [0, 0])
    np.testing.assert_allclose(gone, [*alone, 0, 0, 0], atol=1e-6)
    gap = estimated(name, [1, 1, 1, 0, 1], token_rewards=[-0.1, 2.05, -0.2, np.nan, -1.1])
    np.testing.assert_array_equal(gap, np.where([True, True, True, False, True], estimated(name), 0))


@pytest.mark.parametrize("name", ["dapo", "gspo", "cispo"])
def test_the_later_group_algorithms_have_the_advantages_of_grpo(name: AlgorithmName) -> None:
    np.testing.assert_allclose(estimated(name), [1.625 / (STD + 1e-4)] * 2 + [-1.625 / (STD + 1e-4)] * 3, rtol=1e-5)


def test_uniform_groups_by_hand() -> None:
    """Prompt 7 has scores 1, 1; prompt 2 has 0, 1; of prompt 9 one response counts; of prompt 4 none."""
    scores = np.array([1, 0, 5, 1, 1, 8, 3], dtype=np.float32)
    prompts, counted = np.array([7, 2, 9, 7, 2, 9, 4]), np.array([1, 1, 1, 1, 1, 0, 0], dtype=bool)
    assert uniform_groups(scores, prompts, counted).tolist() == [True, False, True, True, False, True, True]
    assert uniform_groups(scores[:0], prompts[:0], counted[:0]).tolist() == []
