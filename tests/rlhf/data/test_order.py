from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlhf.data.order import OrderState, PromptOrder, epoch_batches
from rlhf.errors import UserError


@given(n=st.integers(1, 20), seed=st.integers(0, 2**32), sizes=st.lists(st.integers(0, 25), max_size=10))
def test_each_epoch_holds_every_item_once_however_it_is_taken(n: int, seed: int, sizes: list[int]) -> None:
    order = PromptOrder(n, seed)
    taken = [i for size in sizes for i in order.take(size)]
    assert len(taken) == sum(sizes)
    assert taken == PromptOrder(n, seed).take(sum(sizes))
    for start in range(0, len(taken) - n + 1, n):
        assert sorted(taken[start : start + n]) == list(range(n))
    assert order.state() == OrderState(*divmod(sum(sizes), n))


@given(n=st.integers(1, 20), seed=st.integers(0, 99), before=st.integers(0, 70), after=st.integers(1, 50))
def test_a_restored_order_continues_without_a_gap(n: int, seed: int, before: int, after: int) -> None:
    order = PromptOrder(n, seed)
    order.take(before)
    restored = PromptOrder.restore(n, seed, order.state())
    assert restored.take(after) == order.take(after)


def test_epochs_and_seeds_have_orders_of_their_own() -> None:
    order = PromptOrder(100, seed=0)
    first, second = order.take(100), order.take(100)
    assert first != second and first != list(range(100))
    assert PromptOrder(100, seed=1).take(100) not in (first, second)


def test_a_state_of_other_data_is_refused() -> None:
    with pytest.raises(UserError, match="item 5, but there are only 5"):
        PromptOrder.restore(5, 0, OrderState(epoch=0, position=5))


def test_an_order_over_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one item"):
        PromptOrder(0, seed=0)


def test_batches_carry_an_epochs_remainder_into_the_next() -> None:
    batches = epoch_batches(n=10, batch_size=4, epochs=2, seed=0)  # 20 items
    assert [len(batch) for batch in batches] == [4] * 5
    assert set(Counter(i for batch in batches for i in batch).values()) == {2}


def test_the_short_remainder_of_the_last_epoch_is_left_out() -> None:
    batches = epoch_batches(n=10, batch_size=4, epochs=1, seed=0)
    assert [len(batch) for batch in batches] == [4, 4]
    assert len({i for batch in batches for i in batch}) == 8


def test_less_than_one_batch_is_refused() -> None:
    with pytest.raises(UserError, match="3 rows in 2 epochs do not fill one batch of 7"):
        epoch_batches(n=3, batch_size=7, epochs=2, seed=0)
