from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlhf.algorithms.moments import Moments

TRLX = [np.arange(100), np.ones(100), np.exp(np.arange(10)), np.array([-10, -1, 0, 1, 10])]
"""CarperAI/trlx, tests/test_utils.py (RunningMoments): its four batches."""


@pytest.mark.parametrize(
    ("batch", "std"), zip(TRLX, [29.011491975882016, 0.0, 2571.3379665801585, 7.106335201775948]), ids=range(4)
)
def test_a_batch_alone_agrees_with_trlx(batch: np.ndarray, std: float) -> None:
    assert Moments().add(batch).std == pytest.approx(std, rel=1e-9)


def test_batch_after_batch_agrees_with_trlx() -> None:
    seen = Moments()
    for batch in TRLX:
        seen = seen.add(batch)
    assert seen.count == 215
    assert seen.mean == pytest.approx(83.10840953732374, rel=1e-12)
    assert seen.std == pytest.approx(591.1360751912632, rel=1e-12)


def test_two_batches_by_hand() -> None:
    """1, 3 then 5: mean 3, squared distances 4 + 0 + 4, over 3 − 1."""
    seen = Moments().add(np.array([1.0, 3.0])).add(np.array([5.0]))
    assert seen == Moments(count=3, mean=3.0, squares=8.0)
    assert seen.std == 2.0


def test_nothing_or_one_number_has_no_deviation_and_may_still_divide() -> None:
    assert Moments().std == Moments().add(np.array([7.0])).std == 1.0
    assert Moments().add(np.zeros(0)) == Moments()


NUMBERS = st.lists(st.floats(-1e3, 1e3, width=32), max_size=6)


@given(batches=st.lists(NUMBERS, min_size=1, max_size=5))
def test_any_cut_into_batches_gives_the_moments_of_the_whole(batches: list[list[float]]) -> None:
    seen, everything = Moments(), np.array([number for batch in batches for number in batch])
    for batch in batches:
        seen = seen.add(np.array(batch, dtype=np.float32))
    assert seen.count == len(everything)
    if len(everything) > 1:
        assert seen.mean == pytest.approx(everything.mean(), abs=1e-9)
        assert seen.std == pytest.approx(everything.std(ddof=1), rel=1e-9, abs=1e-6)


def test_a_small_deviation_far_from_zero_is_not_lost() -> None:
    """The difference of two mean squares, 1e16 each, would be 0 or negative here."""
    seen = Moments()
    for _ in range(50):
        seen = seen.add(1e8 + np.array([-0.5, 0.5]))
    assert seen.std == pytest.approx((25 / 99) ** 0.5, rel=1e-6)
