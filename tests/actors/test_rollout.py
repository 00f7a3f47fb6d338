"""Tests of the blocks in which answers leave an engine, and of placeholders for missing answers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence

import numpy as np
import pytest

from actors.rollout import as_finished, in_order
from rlhf.generation.engine import GeneratedAnswer
from rlhf.types import FinishReason, Prompt, Rollout

Blocks = Callable[[AsyncIterator[GeneratedAnswer], int, int], AsyncIterator[list[GeneratedAnswer]]]


def answer(position: int) -> GeneratedAnswer:
    rollout = Rollout(
        prompt=Prompt(id=position, tokens=(1,)),
        tokens=np.array([2], np.int32),
        logprobs=np.zeros(1, np.float32),
        mask=np.ones(1, bool),
        weight_version=0,
        finish_reason=FinishReason.STOP,
        seed=position,
    )
    return GeneratedAnswer(position=position, rollout=rollout)


def positions(blocks: Blocks, finished: Sequence[int], size: int) -> list[list[int]]:
    """Positions of the answers in each block."""

    async def stream() -> AsyncIterator[GeneratedAnswer]:
        for position in finished:
            yield answer(position)

    async def collect() -> list[list[int]]:
        return [[each.position for each in block] async for block in blocks(stream(), len(finished), size)]

    return asyncio.run(collect())


FINISHED = [4, 0, 2, 1, 3]


def test_blocks_of_what_finished_together_wait_for_nobody() -> None:
    assert positions(as_finished, FINISHED, 2) == [[4, 0], [2, 1], [3]]


@pytest.mark.parametrize("finished", [FINISHED, [0, 1, 2, 3, 4], [4, 3, 2, 1, 0]])
def test_deterministic_blocks_are_the_same_whatever_finishes_first(finished: list[int]) -> None:
    assert positions(in_order, finished, 2) == [[0, 1], [2, 3], [4]]


@pytest.mark.parametrize("blocks", [as_finished, in_order])
def test_no_answers_no_blocks(blocks: Blocks) -> None:
    assert positions(blocks, [], 3) == []
    assert positions(blocks, [0], 3) == [[0]]
