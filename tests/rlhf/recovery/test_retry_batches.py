"""Tests that a poison sample is found and quarantined, and that every other one is answered."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from rlhf.recovery.retry_batches import CHANCES, Batch, RetryBatches


def batch(*positions: int, losses: int = 0, is_spared: bool = False) -> Batch:
    return Batch(positions=positions, losses=losses, is_spared=is_spared)


def work(count: int, poison: set[int], done_before: int = 0) -> tuple[list[int], RetryBatches, int]:
    """One engine answers positions in order, and dies at a poison, after ``done_before`` answers.

    Returns the answered ones, the batches, and the number of deaths.
    """
    batches, answered, deaths = RetryBatches.of(count), list[int](), 0
    while batches.waiting:
        given_ = batches.waiting.pop(0)
        fatal = [i for i, place in enumerate(given_.positions) if place in poison]
        done = given_.positions if not fatal else given_.positions[: min(fatal[0], done_before)]
        answered += done
        if fatal:
            deaths += 1
            batches.lost(given_, [place for place in given_.positions if place not in done])
    return answered, batches, deaths


def test_without_a_death_all_is_given_out_once() -> None:
    assert RetryBatches.of(5).waiting == [batch(0, 1, 2, 3, 4)]
    assert RetryBatches.of(0).waiting == []


def test_one_death_gives_the_rest_out_again_whole() -> None:
    batches = RetryBatches(waiting=[])
    assert batches.lost(batch(0, 1, 2, 3, 4), [1, 3, 4]) == []
    assert batches.waiting == [batch(1, 3, 4, losses=1)] and not batches.waiting[0].is_suspect


def test_a_second_death_divides_it() -> None:
    batches = RetryBatches(waiting=[])
    batches.lost(batch(0, 1, 2, 3, 4, losses=1), [0, 1, 2, 3, 4])
    assert batches.waiting == [batch(0, 1, 2, losses=2), batch(3, 4, losses=2)]
    assert all(each.is_suspect for each in batches.waiting)


def test_engines_that_are_lost_together_are_one_loss_for_the_samples_of_each() -> None:
    """However many they are: no sample is suspected."""
    batches = RetryBatches(waiting=[])
    for first in range(0, 40, 4):
        batches.lost(batch(*range(first, first + 4)), range(first, first + 4))
    assert batches.waiting == [batch(*range(40), losses=1)], "all of them are shared evenly"


def test_what_was_given_to_an_engine_that_was_lost_already_is_spared_once() -> None:
    batches = RetryBatches(waiting=[])
    for given_ in (batch(0, 1), batch(2, 3, losses=1), batch(4, 5, losses=1, is_spared=True)):
        batches.lost(given_, list(given_.positions), is_continued=True)
    assert batches.waiting == [
        batch(4, losses=2, is_spared=True), batch(5, losses=2, is_spared=True),
        batch(2, 3, losses=1, is_spared=True),
        batch(0, 1, losses=1),
    ]  # fmt: skip


def test_the_last_one_of_many_is_not_blamed_for_what_killed_the_others() -> None:
    """Only a failure with a single assigned sample, and no other on its engine, is evidence against it."""
    batches = RetryBatches(waiting=[])
    assert batches.lost(batch(0, 1, losses=1), [1]) == []
    assert batches.waiting == [batch(1, losses=2)]
    assert batches.lost(batch(1, losses=2), [1], is_alone=False) == []
    assert batches.waiting.pop(0) == batch(1, losses=3)
    assert batches.lost(batch(1, losses=3), [1]) == [1]
    assert batches.set_aside == [1]


@given(st.integers(1, 200), st.data())
def test_one_poison_costs_a_logarithm_of_deaths(count: int, data: st.DataObject) -> None:
    poison, before = data.draw(st.integers(0, count - 1)), data.draw(st.integers(0, 3))
    answered, batches, deaths = work(count, {poison}, before)
    assert sorted(answered) == [place for place in range(count) if place != poison]
    assert batches.set_aside == [poison]
    assert deaths <= CHANCES + 1 + math.ceil(math.log2(count))


@given(st.integers(1, 60), st.sets(st.integers(0, 59), max_size=4))
def test_several_poisons_are_all_found(count: int, poison: set[int]) -> None:
    poison = {place for place in poison if place < count}
    answered, batches, _ = work(count, poison)
    assert sorted(answered) == [place for place in range(count) if place not in poison]
    assert set(batches.set_aside) == poison
