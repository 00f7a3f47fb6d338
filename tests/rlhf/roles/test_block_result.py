from __future__ import annotations

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from rlhf.batching import plan
from rlhf.models.packed_row import PackedRow
from rlhf.roles.block_result import BlockResult, join_samples, join_tokens, token_index
from rlhf.roles.role import forward_part
from rlhf.types import Sequences
from tests.rlhf.tiny import random_sequences

SIZES = st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9)), min_size=1, max_size=12)
CPU = torch.device("cpu")


def shares(sequences: Sequences, world: int, budget: int, compute: object) -> list[BlockResult]:
    parts = plan(range(len(sequences)), sequences.lengths, world, budget)
    return [forward_part(sequences, micro_batches, CPU, compute) for micro_batches in parts]


def target_and_place(row: PackedRow) -> torch.Tensor:
    """A number per response token that encodes the token and its position."""
    return row.targets + 100 * row.positions[0, row.predict_at]


@given(sizes=SIZES, world=st.integers(1, 4), budget=st.integers(1, 40))
def test_shares_joined_are_the_whole_in_order_whatever_the_split(
    sizes: list[tuple[int, int]], world: int, budget: int
) -> None:
    sequences = random_sequences(*sizes)
    joined = join_tokens(shares(sequences, world, budget, target_and_place), sequences)
    expected = [
        token + 100 * (len(sequences.prompt(i)) - 1 + t)
        for i in range(len(sequences))
        for t, token in enumerate(sequences.response(i).tolist())
    ]
    assert joined.tolist() == expected and joined.dtype == np.float32


@given(sizes=SIZES, world=st.integers(1, 4), budget=st.integers(1, 40))
def test_numbers_of_whole_samples_are_joined_in_order(sizes: list[tuple[int, int]], world: int, budget: int) -> None:
    sequences = random_sequences(*sizes)
    joined = join_samples(shares(sequences, world, budget, lambda row: row.positions[0, row.last] + 1), len(sequences))
    assert joined.tolist() == sequences.lengths.tolist()


def test_what_no_rank_computed_is_not_a_number() -> None:
    sequences = random_sequences((1, 2), (1, 1), (1, 3))
    middle = BlockResult(samples=np.array([1]), values=np.array([5], dtype=np.float32))
    np.testing.assert_array_equal(join_samples([middle], 3), [np.nan, 5, np.nan])
    np.testing.assert_array_equal(join_tokens([middle], sequences), [np.nan, np.nan, 5, np.nan, np.nan, np.nan])


def test_token_index_by_hand() -> None:
    """Responses of 2, 1, 3 and 0 tokens have the indices 0 1 | 2 | 3 4 5 |."""
    sequences = Sequences.pack([([9], [9, 9]), ([], [9]), ([9, 9], [9, 9, 9]), ([9], [])])
    assert token_index(sequences, [2, 0]).tolist() == [3, 4, 5, 0, 1]
    assert token_index(sequences, [3, 1]).tolist() == [2]
    assert token_index(sequences, []).tolist() == []
