"""What a step asks of the engines, and the blocks of rollouts that come of it, through a checkpoint and back."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import ray

from actors.waiting import Moment
from rlhf.checkpoints.files import FileEntry, write_files
from rlhf.config.schema import Recipe
from rlhf.data.order import OrderState, PromptOrder
from rlhf.types import RolloutBlock, Sequences

if TYPE_CHECKING:  # the processes that read and write files import this, and need no more than that
    from actors.crew import Crew

SAMPLING = 10**9 + 1  # tells this stream of random numbers from those of other uses of the same seed
FOLDER = "rollouts"
"""Where a checkpoint holds blocks that are there before their step."""


@dataclass(frozen=True, kw_only=True)
class Asked:
    """The prompts of a step, each as often as it is to be answered, a seed for each answer, and the order after it."""

    step: int
    prompts: Sequence[int]
    seeds: Sequence[int]
    after: OrderState


@dataclass(frozen=True, kw_only=True)
class Block:
    """A block of rollouts, which stays where it is; how many there are, and how many of them have no response."""

    rollouts: ray.ObjectRef
    samples: int
    set_aside: int


def ask(recipe: Recipe, prompts: int, step: int, order: OrderState) -> Asked:
    """The next prompts of a seeded order over so many; step and order say all that it depends on."""
    coming, each = PromptOrder.restore(prompts, recipe.seed, order), recipe.ppo.samples_per_prompt
    chosen = [prompt for prompt in coming.take(recipe.ppo.batch_size // each) for _ in range(each)]
    draw = np.random.default_rng([recipe.seed, SAMPLING, step])
    seeds = draw.integers(2**31, size=len(chosen)).tolist()
    while len(set(zip(chosen, seeds))) < len(chosen):  # a prompt's samples with the same seed would be one sample
        seeds = draw.integers(2**31, size=len(chosen)).tolist()
    return Asked(step=step, prompts=chosen, seeds=seeds, after=coming.state())


def answer(crew: Crew, asked: Asked, set_aside: int, moment: Moment) -> Iterator[Block]:
    """Have the engines begin at once, and yield blocks as they come. ``set_aside`` samples were so far."""
    answers = crew.engines.generate(asked.prompts, asked.seeds, moment)

    def blocks(before: int) -> Iterator[Block]:
        for rollouts, answered in answers:
            faults = crew.supervisor.set_aside(answered.faults, before, moment)
            before += faults
            yield Block(rollouts=rollouts, samples=len(answered.places), set_aside=faults)

    return blocks(set_aside)


def write_block(block: RolloutBlock, folder: Path, index: int) -> list[FileEntry]:
    """Write a block into a checkpoint's folder."""
    data, arrays = BytesIO(), {f.name: getattr(block, f.name) for f in fields(block) if f.name != "sequences"}
    np.savez(data, **arrays, **{f.name: getattr(block.sequences, f.name) for f in fields(Sequences)})
    return write_files({f"{FOLDER}/{index}.npz": np.frombuffer(data.getbuffer(), np.uint8)}, folder)


def read_block(path: Path) -> RolloutBlock:
    """What ``write_block`` wrote, whose hash was compared."""
    with np.load(path, allow_pickle=False) as file:
        arrays: Mapping[str, Any] = dict(file)
    packed = {f.name: arrays[f.name] for f in fields(Sequences)}
    rest = {name: array for name, array in arrays.items() if name not in packed}
    return RolloutBlock(sequences=Sequences(**packed), **rest)


def read_blocks(paths: Sequence[Path]) -> list[Any]:
    """(samples, samples without a response) of each block, and then the blocks."""
    blocks = [read_block(path) for path in paths]
    return [[(len(block), int(block.set_aside.sum())) for block in blocks], *blocks]


def there(*blocks: RolloutBlock) -> None:
    """A task that Ray begins once it has all of the blocks, and fails where one is lost."""
