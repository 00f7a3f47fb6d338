from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlhf.batching import UnitBuilder, balance, count_rows, minibatches, pack, plan, share_prompts

LENGTHS = st.lists(st.integers(1, 60), max_size=40)
RANKS = st.integers(1, 8)
BUDGETS = st.integers(1, 100)


def flat(groups: list[list[int]]) -> list[int]:
    return sorted(i for group in groups for i in group)


@given(lengths=LENGTHS, parts=RANKS)
def test_balance_gives_each_sample_once_in_parts_that_differ_by_at_most_one(lengths: list[int], parts: int) -> None:
    shares = balance(lengths, parts)
    assert len(shares) == parts
    assert flat(shares) == list(range(len(lengths)))
    sizes = [len(share) for share in shares]
    assert max(sizes) - min(sizes) <= 1


@given(lengths=LENGTHS, parts=RANKS)
def test_balanced_parts_are_within_one_longest_sample_when_counts_are_equal(lengths: list[int], parts: int) -> None:
    lengths = lengths[: len(lengths) // parts * parts]
    loads = [sum(lengths[i] for i in share) for share in balance(lengths, parts)]
    assert max(loads) - min(loads) <= max(lengths, default=0)


def test_balance_by_hand() -> None:
    """Longest first to the lightest part with room: 9 | 8, then 7 beside 8, then 1 beside 9: two samples a part."""
    assert balance([1, 9, 8, 7], 2) == [[0, 1], [2, 3]]


@given(lengths=LENGTHS, budget=BUDGETS)
def test_pack_keeps_to_the_budget_unless_one_sample_exceeds_it(lengths: list[int], budget: int) -> None:
    groups = pack(range(len(lengths)), lengths, budget)
    assert flat(groups) == list(range(len(lengths)))
    assert all(sum(lengths[i] for i in group) <= budget or len(group) == 1 for group in groups)
    loads = sorted(sum(lengths[i] for i in group) for group in groups)
    assert len(loads) < 2 or loads[0] + loads[1] > budget  # first fit: no two groups would go into one


@given(data=st.data(), lengths=LENGTHS.filter(bool), ranks=RANKS, budget=BUDGETS)
def test_plan_gives_every_rank_as_many_micro_batches(
    data: st.DataObject, lengths: list[int], ranks: int, budget: int
) -> None:
    chosen = data.draw(st.lists(st.sampled_from(range(len(lengths))), unique=True))
    planned = plan(chosen, lengths, ranks, budget)
    assert len(planned) == ranks
    assert len({len(micro_batches) for micro_batches in planned}) == 1 and len(planned[0]) >= 1
    assert flat([group for micro_batches in planned for group in micro_batches]) == sorted(chosen)
    for micro_batches in planned:
        assert all(sum(lengths[i] for i in group) <= budget or len(group) == 1 for group in micro_batches)
    shares = [sum(len(group) for group in micro_batches) for micro_batches in planned]
    assert max(shares) - min(shares) <= 1


@given(st.integers(0, 60), st.integers(1, 9), st.integers(1, 7), st.integers(1, 40))
def test_rows_of_equal_samples_are_counted_as_they_are_planned(
    samples: int, length: int, ranks: int, budget: int
) -> None:
    planned = plan(range(samples), [length] * samples, ranks, budget)
    assert {len(groups) for groups in planned} == {count_rows(samples, length, ranks, budget)}


def test_billions_of_samples_are_counted_at_once() -> None:
    assert count_rows(2**31, 512, 4, 4096) == 2**26


def test_a_rank_without_work_gets_empty_groups() -> None:
    assert plan([], [], ranks=2, budget=10) == [[[]], [[]]]
    assert plan([0, 1, 2], [10, 10, 10], ranks=2, budget=10) == [[[0], [2]], [[1], []]]


def test_a_rank_that_needs_fewer_groups_splits_its_fullest() -> None:
    """Rank 0 has 10 + 1 and needs two groups; rank 1's 9 + 1 would fit one."""
    planned = plan([0, 1, 2, 3], [10, 9, 1, 1], ranks=2, budget=10)
    assert planned == [[[0], [3]], [[1], [2]]]


@given(samples=st.integers(1, 12), count=st.integers(1, 4), epochs=st.integers(1, 4), seed=st.integers(0, 1000))
def test_minibatches_cover_every_epoch_once(samples: int, count: int, epochs: int, seed: int) -> None:
    samples *= count
    updates = minibatches(samples, count, epochs, [seed, 7])
    assert len(updates) == epochs * count
    assert {len(update) for update in updates} == {samples // count}
    for epoch in range(epochs):
        assert flat(updates[epoch * count : (epoch + 1) * count]) == list(range(samples))


def test_minibatches_differ_between_epochs_steps_and_seeds_and_are_repeatable() -> None:
    updates = minibatches(32, 2, 3, [0, 5])
    assert updates == minibatches(32, 2, 3, [0, 5])
    assert updates[0] != updates[2] != updates[4]
    assert updates != minibatches(32, 2, 3, [0, 6])
    assert updates != minibatches(32, 2, 3, [1, 5])


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_an_update_is_the_same_samples_on_any_number_of_ranks(ranks: int) -> None:
    lengths = [5, 3, 8, 2, 9, 4, 7, 6]
    for chosen in minibatches(8, 2, 2, [0, 0]):
        assert flat([g for micro_batches in plan(chosen, lengths, ranks, 12) for g in micro_batches]) == chosen


def test_samples_of_a_prompt_stay_on_one_engine() -> None:
    assert share_prompts([7, 7, 7, 3, 3, 9, 9, 7], 2) == [[0, 1, 2, 5, 6], [3, 4, 7]]
    assert share_prompts([4, 2, 0, 1, 3], 2) == [[0, 2, 4], [1, 3]]  # one sample a prompt: in turn
    assert share_prompts([7, 7, 7, 7, 7], 3) == [[0, 3], [1, 4], [2]]  # one prompt: no engine is idle
    assert share_prompts([], 2) == [[], []]


@given(st.lists(st.integers(0, 5), max_size=40), st.integers(1, 5))
def test_every_sample_is_answered_once(chosen: list[int], engines: int) -> None:
    assert sorted(i for places in share_prompts(chosen, engines) for i in places) == list(range(len(chosen)))


def test_padded_samples_count_as_the_longest_of_their_group() -> None:
    """9 alone; 4, 4 and 3 in rows of 4 are 12. End to end 9 and 3 would share one."""
    assert pack(range(4), [9, 4, 4, 3], 12, padded=True) == [[0], [1, 2, 3]]
    assert pack(range(4), [9, 4, 4, 3], 12) == [[0, 3], [1, 2]]


@given(lengths=LENGTHS, budget=BUDGETS)
def test_padded_groups_keep_to_the_budget(lengths: list[int], budget: int) -> None:
    groups = pack(range(len(lengths)), lengths, budget, padded=True)
    assert flat(groups) == list(range(len(lengths)))
    assert all(len(group) * max(lengths[i] for i in group) <= budget or len(group) == 1 for group in groups)


def test_one_long_sample_does_not_leave_its_rank_alone_with_it() -> None:
    """Sizes differ by at most one for any lengths, so that each rank's number of samples is known to all."""
    assert balance([9, 1, 1, 1], 2) == [[0, 3], [1, 2]]
    assert balance([9, 1, 1, 1, 1], 2) == [[0, 3, 4], [1, 2]]


def test_the_first_rank_is_not_always_the_one_with_the_most_rows() -> None:
    """6 and 1 tokens fit into a row of 7, two of 5 do not: the rank with one row splits it to have two."""
    assert plan(range(4), [6, 5, 5, 1], ranks=2, budget=7) == [[[0], [3]], [[1], [2]]]


def test_parts_that_can_hold_nothing_more_are_passed_over() -> None:
    """Two samples in three parts: one each in the first two. Five in three: 9 2 | 5 3 | 4, as the third holds one."""
    assert balance([4, 9], 3) == [[1], [0], []]
    assert balance([9, 5, 4, 3, 2], 3) == [[0, 4], [1, 3], [2]]


def test_prompts_are_dealt_in_turn_and_samples_where_there_are_fewer_prompts_than_engines() -> None:
    """Runs of equal prompts: 7 7 | 3 | 7 go to engines 0, 1, 0. Of one prompt, each sample goes to the next engine."""
    assert share_prompts([7, 7, 3, 7], 2) == [[0, 1, 3], [2]]
    assert share_prompts([7, 7, 7], 2) == [[0, 2], [1]]
    assert share_prompts([], 3) == [[], [], []]


def test_units_are_full_when_another_block_of_their_mean_size_would_not_fit() -> None:
    """Of 10 tokens: 4 and 4 make 8, and another 4 would be too many; 5 and 5 fit exactly; 6 is alone, and so is 30."""
    builder = UnitBuilder(10, 99)
    sizes = [4, 4, 5, 5, 6, 30, 2]
    units = [unit for block, size in enumerate(sizes) if (unit := builder.add(block, 1, size, "a"))] + builder.rest()
    assert [(unit.blocks, unit.tokens) for unit in units] == [([0, 1], 8), ([2, 3], 10), ([4], 6), ([5], 30), ([6], 2)]
    assert builder.rest() == []


def test_units_are_full_with_so_many_samples_however_few_tokens() -> None:
    builder = UnitBuilder(100, 4)
    units = [unit for block in range(5) if (unit := builder.add(block, 2, 1, "a"))] + builder.rest()
    assert [(unit.blocks, unit.samples) for unit in units] == [([0, 1], 4), ([2, 3], 4), ([4], 2)]


def test_blocks_that_nothing_fills_are_units_of_their_own() -> None:
    """A function's or a service's, which gets every block at once."""
    builder = UnitBuilder(0, 99)
    assert [builder.add(block, 1, 1, "").blocks for block in (0, 1)] == [[0], [1]]


STREAMS = st.lists(st.lists(st.integers(0, 9), max_size=8), min_size=1, max_size=4)


@given(streams=STREAMS, tokens=st.integers(1, 20), seed=st.integers(0, 2**32 - 1))
def test_units_do_not_depend_on_which_stream_is_faster(streams: list[list[int]], tokens: int, seed: int) -> None:
    def units(order: list[int]) -> list[list[tuple[int, int]]]:
        """Units as (stream, position), sorted; ``order`` names the stream of each next block."""
        builder, names, found = UnitBuilder(tokens, 3), list[tuple[int, int]](), []
        for stream in order:
            position = sum(1 for each, _ in names if each == stream)
            names.append((stream, position))
            found.append(builder.add(len(names) - 1, 1, streams[stream][position], str(stream)))
        full = [unit for unit in found if unit is not None] + builder.rest()
        assert sorted(block for unit in full for block in unit.blocks) == list(range(len(order)))
        assert all(unit.tokens == sum(streams[a][b] for a, b in (names[i] for i in unit.blocks)) for unit in full)
        return sorted([names[block] for block in unit.blocks] for unit in full)

    order = [stream for stream, sizes in enumerate(streams) for _ in sizes]
    shuffled = np.random.default_rng(seed).permutation(order).astype(int).tolist()
    assert units(order) == units(shuffled)
