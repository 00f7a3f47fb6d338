"""The prompts and seeds of a step, and its blocks of rollouts: generated, written to a checkpoint and read back."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import ray

from actors.waiting import PhaseContext
from rlhf.checkpoints.manifest import FileEntry, write_files
from rlhf.config.schema import Recipe
from rlhf.data.order import OrderState, PromptOrder
from rlhf.types import RolloutBlock, Sequences

if TYPE_CHECKING:  # processes that read and write files import this module, and do not need the actors
    from actors.engines import Engines
    from actors.rollout import BlockSummary

SAMPLING = 10**9 + 1  # separates this random stream from other uses of the recipe's seed
FOLDER = "rollouts"
"""Subfolder of a checkpoint for blocks that were generated ahead of their step."""


@dataclass(frozen=True, kw_only=True)
class StepPrompts:
    """Indices of the prompts of one round of a step, each repeated for its samples, with a seed for each sample."""

    step: int
    round: int
    prompts: Sequence[int]
    seeds: Sequence[int]
    after: OrderState
    """State of the prompt order after them."""


@dataclass(frozen=True, kw_only=True)
class Block:
    """Reference to a block of rollouts, with its number of samples, how many of them are quarantined, and its tokens.

    ``stream``: see ``BlockSummary``.
    """

    rollouts: ray.ObjectRef
    samples: int
    set_aside: int
    tokens: int
    stream: str = ""


def draw_step(recipe: Recipe, prompt_count: int, step: int, order: OrderState, sampling_round: int = 0) -> StepPrompts:
    """Draw the next prompts of the seeded order over ``prompt_count`` prompts; a function of step, round and order.

    The seeds of each round have a range of their own: the same prompt and seed would give identical samples.
    """
    prompt_order, repeats = PromptOrder.restore(prompt_count, recipe.seed, order), recipe.ppo.samples_per_prompt
    indices = [prompt for prompt in prompt_order.take(recipe.ppo.rollouts_per_step // repeats) for _ in range(repeats)]
    draw = np.random.default_rng([recipe.seed, SAMPLING, step])
    span = 2**31 // recipe.ppo.sampling_rounds
    seeds = draw.integers(span, size=len(indices)).tolist()
    while len(set(zip(indices, seeds))) < len(indices):
        seeds = draw.integers(span, size=len(indices)).tolist()
    return StepPrompts(
        step=step,
        round=sampling_round,
        prompts=indices,
        seeds=[span * sampling_round + seed for seed in seeds],
        after=prompt_order.state(),
    )


def generate_blocks(
    engines: Engines, step_prompts: StepPrompts, set_aside: int, context: PhaseContext
) -> Iterator[Block]:
    """Start generation at once, and return an iterator over finished blocks.

    Args:
        set_aside: number of samples quarantined earlier.

    Raises:
        MachineryError: during iteration, if more than ``recovery.bad_samples`` samples are quarantined, or as for
            ``Engines.generate``.
    """
    answers = engines.generate(step_prompts.prompts, step_prompts.seeds, context)

    def blocks(before: int) -> Iterator[Block]:
        for rollouts, summary in answers:
            faults = engines.supervisor.set_aside(summary.faults, before, context)
            before += faults
            yield make_block(rollouts, summary)

    return blocks(set_aside)


def make_block(rollouts: ray.ObjectRef, summary: BlockSummary) -> Block:
    """Describe a block that an engine returned."""
    return Block(
        rollouts=rollouts,
        samples=len(summary.positions),
        set_aside=len(summary.set_aside),
        tokens=summary.tokens,
        stream=summary.stream,
    )


def write_block(block: RolloutBlock, folder: Path, index: int, stream: str) -> list[FileEntry]:
    """Write a block into the ``rollouts`` subfolder of a checkpoint, with the name of its stream."""
    data, arrays = BytesIO(), {f.name: getattr(block, f.name) for f in fields(block) if f.name != "sequences"}
    packed = {f.name: getattr(block.sequences, f.name) for f in fields(Sequences)}
    np.savez(data, **arrays, **packed, stream=np.array(stream))
    return write_files({f"{FOLDER}/{index}.npz": np.frombuffer(data.getbuffer(), np.uint8)}, folder)


def read_block(path: Path) -> tuple[RolloutBlock, str]:
    """Read a block written by ``write_block``, and the name of its stream; the caller has verified its hash."""
    with np.load(path, allow_pickle=False) as file:
        arrays: dict[str, Any] = dict(file)
    # Checkpoints of earlier versions lack the last two.
    stream = str(arrays.pop("stream", ""))
    arrays.setdefault("cached_tokens", np.zeros(len(arrays["seeds"]), np.int32))
    packed = {f.name: arrays.pop(f.name) for f in fields(Sequences)}
    return RolloutBlock(sequences=Sequences(**packed), **arrays), stream


def read_blocks(paths: Sequence[Path]) -> list[Any]:
    """Read blocks; returns a list with the other fields of each ``Block``, followed by the rollouts."""
    blocks, streams = zip(*map(read_block, paths))
    described = [
        {
            "samples": len(block),
            "set_aside": int(block.set_aside.sum()),
            "tokens": len(block.sequences.tokens),
            "stream": stream,
        }
        for block, stream in zip(blocks, streams)
    ]
    return [described, *blocks]


def confirm_blocks(*blocks: RolloutBlock) -> None:
    """Do nothing: Ray runs this task once all blocks are available, and it fails if one is lost."""
