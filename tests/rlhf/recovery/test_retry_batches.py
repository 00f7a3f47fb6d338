"""Tests that a poison sample is found and quarantined, and that every other one is answered."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from rlhf.recovery.retry_batches import CHANCES, RetryBatches


def work(count: int, poison: set[int], done_before: int = 0) -> tuple[list[int], RetryBatches]:
    """Answer positions in order; engines die at a poison, after ``done_before`` answers. Returns the answered ones."""
    batches, answered = RetryBatches.of(count), []
    while batches.waiting:
        places = batches.next()
        fatal = [i for i, place in enumerate(places) if place in poison]
        done = places if not fatal else places[: min(fatal[0], done_before)]
        answered += done
        if fatal:
            batches.lost(places, [place for place in places if place not in done])
    return answered, batches


def test_without_a_death_all_is_given_out_once() -> None:
    batches = RetryBatches.of(5)
    assert batches.next() == [0, 1, 2, 3, 4]
    assert batches.waiting == []
    assert RetryBatches.of(0).waiting == []


def test_one_death_gives_the_rest_out_again_whole() -> None:
    batches = RetryBatches.of(5)
    assert batches.lost(batches.next(), [1, 3, 4]) == []
    assert batches.waiting == [[1, 3, 4]]


def test_a_second_death_divides_it() -> None:
    batches = RetryBatches.of(5)
    batches.lost(batches.next(), [0, 1, 2, 3, 4])
    batches.lost(batches.next(), [0, 1, 2, 3, 4])
    assert batches.waiting == [[0, 1, 2], [3, 4]]


def test_the_last_one_of_many_is_not_blamed_for_what_killed_the_others() -> None:
    """Only a failure with a single assigned sample is evidence against it."""
    batches = RetryBatches.of(2)
    batches.lost(batches.next(), [1])
    assert batches.lost([0, 1], [1]) == []
    assert batches.waiting[0] == [1]
    assert batches.lost(batches.next(), [1]) == [1]
    assert batches.set_aside == [1]


@given(st.integers(1, 200), st.data())
def test_one_poison_costs_a_logarithm_of_deaths(count: int, data: st.DataObject) -> None:
    poison, before = data.draw(st.integers(0, count - 1)), data.draw(st.integers(0, 3))
    answered, batches = work(count, {poison}, before)
    assert sorted(answered) == [place for place in range(count) if place != poison]
    assert batches.set_aside == [poison]
    assert batches.losses <= CHANCES + 1 + math.ceil(math.log2(count))


@given(st.integers(1, 60), st.sets(st.integers(0, 59), max_size=4))
def test_several_poisons_are_all_found(count: int, poison: set[int]) -> None:
    poison = {place for place in poison if place < count}
    answered, batches = work(count, poison)
    assert sorted(answered) == [place for place in range(count) if place not in poison]
    assert set(batches.set_aside) == poison
