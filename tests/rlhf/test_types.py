from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from rlhf.types import FinishReason, Prompt, Rollout, RolloutBlock, Sequences, exclusive_sum

SAMPLES = [([1, 2, 3], [4, 5]), ([6], []), ([], [7, 8, 9])]


def rollout(id: int, prompt: tuple[int, ...], answer: list[int], reason: FinishReason = FinishReason.STOP) -> Rollout:
    return Rollout(
        prompt=Prompt(id=id, tokens=prompt),
        tokens=np.array(answer, dtype=np.int32),
        logprobs=-np.array(answer, dtype=np.float32),
        mask=np.array([token % 3 != 0 for token in answer], dtype=bool),
        weight_version=3,
        finish_reason=reason,
        seed=100 + id,
    )


def test_sequences_are_packed_end_to_end() -> None:
    packed = Sequences.pack(SAMPLES)
    assert len(packed) == 3
    assert packed.tokens.tolist() == [1, 2, 3, 4, 5, 6, 7, 8, 9] and packed.tokens.dtype == np.int32
    assert packed.lengths.tolist() == [5, 1, 3]
    assert packed.starts.tolist() == [0, 5, 6]
    assert packed.response_starts.tolist() == [0, 2, 2]


def test_each_sample_is_found_again() -> None:
    packed = Sequences.pack(SAMPLES)
    assert [(packed.prompt(i).tolist(), packed.response(i).tolist()) for i in range(3)] == SAMPLES


def test_concatenation_is_packing_of_all() -> None:
    joined = Sequences.concatenate([Sequences.pack(SAMPLES[:1]), Sequences.pack([]), Sequences.pack(SAMPLES[1:])])
    assert [(joined.prompt(i).tolist(), joined.response(i).tolist()) for i in range(3)] == SAMPLES


def test_nothing_packs_to_nothing() -> None:
    empty = Sequences.pack([])
    assert len(empty) == 0 and empty.tokens.tolist() == empty.starts.tolist() == []


def test_exclusive_sum_does_not_overflow_32_bits() -> None:
    assert exclusive_sum(np.array([2**31 - 1, 2**31 - 1, 1], dtype=np.int32)).tolist() == [0, 2**31 - 1, 2**32 - 2]


def test_a_block_carries_every_field_of_its_rollouts() -> None:
    block = RolloutBlock.pack([rollout(8, (1, 2), [3]), rollout(5, (4,), [6, 7], FinishReason.LENGTH)])
    assert block.sequences.tokens.tolist() == [1, 2, 3, 4, 6, 7]
    assert block.logprobs.tolist() == [-3, -6, -7] and block.logprobs.dtype == np.float32
    assert block.response_mask.tolist() == [False, False, True] and block.response_mask.dtype == bool
    assert block.prompt_ids.tolist() == [8, 5]
    assert block.seeds.tolist() == [108, 105]
    assert block.weight_versions.tolist() == [3, 3]
    assert block.finish_reasons.tolist() == [FinishReason.STOP, FinishReason.LENGTH]


def assert_same(one: RolloutBlock, other: RolloutBlock) -> None:
    """Every array of the two blocks, of their sequences too."""
    for field in dataclasses.fields(RolloutBlock):
        if field.name != "sequences":
            np.testing.assert_array_equal(getattr(one, field.name), getattr(other, field.name), err_msg=field.name)
    for field in dataclasses.fields(Sequences):
        np.testing.assert_array_equal(getattr(one.sequences, field.name), getattr(other.sequences, field.name))


ROLLOUTS = [rollout(i, (i,) * i, list(range(i, i + i + 1)), FinishReason(i % 2)) for i in range(4)]


def test_blocks_concatenate_in_their_order() -> None:
    joined = RolloutBlock.concatenate([RolloutBlock.pack(ROLLOUTS[2:]), RolloutBlock.pack(ROLLOUTS[:2])])
    assert_same(joined, RolloutBlock.pack(ROLLOUTS[2:] + ROLLOUTS[:2]))


@pytest.mark.parametrize("chosen", [[0, 1, 2, 3], [3, 1], [2], [1, 1, 0]])
def test_selected_samples_are_as_if_they_alone_had_been_packed(chosen: list[int]) -> None:
    selected = RolloutBlock.pack(ROLLOUTS).select(chosen)
    assert len(selected) == len(chosen)
    assert_same(selected, RolloutBlock.pack([ROLLOUTS[i] for i in chosen]))


def test_nothing_can_be_selected() -> None:
    nothing = RolloutBlock.pack(ROLLOUTS).select([])
    assert len(nothing) == len(nothing.logprobs) == len(nothing.response_mask) == len(nothing.sequences.tokens) == 0


def test_what_flows_cannot_be_changed_on_the_way() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        rollout(0, (1,), [2]).seed = 1
