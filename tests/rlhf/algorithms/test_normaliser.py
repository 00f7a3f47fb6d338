from __future__ import annotations

from typing import get_args

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlhf.algorithms.normaliser import normaliser, token_weights
from rlhf.config.schema import LossMean

LENGTHS = np.array([4, 2, 3, 1], dtype=np.int32)
MASK = np.array([1, 0, 1, 1] + [0, 0] + [1, 1, 0] + [1], dtype=bool)
"""Responses of 4, 2, 3 and 1 tokens, of which 3, 0, 2 and 1 are trained on."""


@pytest.mark.parametrize(
    ("loss_mean", "weights", "count"),
    [
        ("token", [1, 0, 1, 1, 0, 0, 1, 1, 0, 1], 6),
        ("sequence", [1 / 3, 0, 1 / 3, 1 / 3, 0, 0, 0.5, 0.5, 0, 1], 3),
        ("constant", [1, 0, 1, 1, 0, 0, 1, 1, 0, 1], 30),
    ],
)
def test_weights_and_normalisers_by_hand(loss_mean: LossMean, weights: list[float], count: int) -> None:
    """The response without a token in the mask does not count: 6 tokens, 3 responses, at most 10 tokens each."""
    np.testing.assert_allclose(token_weights(loss_mean, LENGTHS, MASK), weights, rtol=1e-6)
    assert normaliser(loss_mean, LENGTHS, MASK, max_length=10) == count


@pytest.mark.parametrize(("loss_mean", "expected"), [("token", 18 / 5), ("sequence", 13 / 3), ("constant", 18 / 30)])
def test_a_loss_of_uneven_responses_by_hand(loss_mean: LossMean, expected: float) -> None:
    """Token losses 1, 3 | 2, 4 | 8: the mean of 5 tokens; of the means 2, 3, 8; of the sums 4, 6, 8 over 10."""
    lengths, mask = np.array([2, 2, 1], dtype=np.int32), np.ones(5, dtype=bool)
    loss = np.array([1.0, 3, 2, 4, 8])
    total = float((token_weights(loss_mean, lengths, mask) * loss).sum()) / normaliser(loss_mean, lengths, mask, 10)
    assert total == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("loss_mean", get_args(LossMean))
def test_a_batch_without_a_token_has_no_weight(loss_mean: LossMean) -> None:
    nothing = np.zeros(10, dtype=bool)
    assert not token_weights(loss_mean, LENGTHS, nothing).any()
    assert normaliser(loss_mean, LENGTHS, nothing, 10) == 0
    assert normaliser(loss_mean, np.zeros(0, np.int32), np.zeros(0, bool), 10) == 0


def test_tokens_are_counted_beyond_what_float32_can() -> None:
    """2^24 + 1 has no float32."""
    lengths = np.array([2**24, 1], dtype=np.int32)
    assert normaliser("token", lengths, np.ones(2**24 + 1, dtype=bool), 1) == 2**24 + 1


@given(
    loss_mean=st.sampled_from(get_args(LossMean)),
    lengths=st.lists(st.integers(0, 5), min_size=1, max_size=6),
    cut=st.integers(0, 6),
    seed=st.integers(0, 2**32 - 1),
)
def test_a_tokens_weight_does_not_depend_on_the_responses_beside_it(
    loss_mean: LossMean, lengths: list[int], cut: int, seed: int
) -> None:
    mask = np.random.default_rng(seed).random(sum(lengths)) < 0.7
    edge = sum(lengths[:cut])
    halves = [(lengths[:cut], mask[:edge]), (lengths[cut:], mask[edge:])]
    apart = [token_weights(loss_mean, np.array(part, dtype=np.int32), kept) for part, kept in halves]
    together = token_weights(loss_mean, np.array(lengths, dtype=np.int32), mask)
    np.testing.assert_array_equal(together, np.concatenate(apart))
