"""The Ray actor of a vLLM engine; it streams blocks of finished samples while the others are still being generated."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Awaitable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from actors.process import Activity, Heartbeat, ProcessLocation, dump_stacks_on_signal, locate_process
from actors.worker import translate_failures
from rlhf.config.schema import ModelConfig, RolloutConfig
from rlhf.device import Device, engine_environment
from rlhf.garbage import paused_collection
from rlhf.models.folder import load_tokenizer
from rlhf.tracking.memory import ActorMemory, memory_here
from rlhf.tracking.quiet import redirect_output
from rlhf.tracking.spans import Taken
from rlhf.types import UNVERIFIED, Prompt, RolloutBlock

if TYPE_CHECKING:  # the controller, which imports this module, needs none of them
    from transformers import PreTrainedTokenizerBase

    from rlhf.generation.engine import GeneratedAnswer
    from rlhf.weights.adapter import AdapterWeights
    from rlhf.weights.fingerprint import Fingerprint

Result = TypeVar("Result")


@dataclass(frozen=True, kw_only=True)
class BlockSummary:
    """Summary of a block for the controller: its number of tokens, and its samples' positions in the call.

    ``set_aside`` are the positions of quarantined samples, ``faults`` their (prompt id, reason). Blocks of one
    ``stream`` have a fixed order: those of one call of a deterministic engine; all others are one stream.
    """

    stream: str
    tokens: int
    positions: tuple[int, ...]
    set_aside: tuple[int, ...]
    faults: tuple[tuple[int, str], ...]


class RolloutActor:
    """One engine. vLLM is imported in ``build``: the import is slow, and reads the environment that is set here."""

    def __init__(self, name: str, log: Path, device: Device, config: RolloutConfig, backend: str | None) -> None:
        log_begins = redirect_output(log)
        dump_stacks_on_signal()
        self.where = locate_process(name, log, log_begins)
        self.activity = Activity()
        os.environ.update(engine_environment(device, config, backend))
        self.prompts: Sequence[Prompt] = ()
        self.calls = 0
        self.tokenizer: PreTrainedTokenizerBase | None = None

    async def build(self, *arguments: Any) -> ProcessLocation:
        """Start the engine, see ``RolloutEngine``; returns the actor's location."""
        with self.activity("start"), translate_failures(self.where, "start"):
            with paused_collection():
                from rlhf.generation.engine import RolloutEngine

            self.engine = RolloutEngine(*arguments)
            self.where = self.where.with_children(await self.engine.prepare_workers())
        return self.where

    async def heartbeat(self) -> Heartbeat:
        """Current activity and its progress."""
        return self.activity.heartbeat()

    async def spans(self) -> Taken:
        """Spans since the last call."""
        return self.activity.spans.take()

    async def memory(self) -> ActorMemory:
        """Memory of this actor's process and its children."""
        return memory_here(self.where.children)

    def _new_stream(self) -> str:
        """See ``BlockSummary``."""
        self.calls += 1
        return f"{self.where.name}/{self.calls}" if self.engine.deterministic else ""

    async def set_prompts(self, prompts: Sequence[Prompt]) -> None:
        """Store the prompts; ``generate`` refers to them by index."""
        self.prompts = prompts

    async def generate(
        self, positions: Sequence[int], indices: Sequence[int], seeds: Sequence[int], block_size: int
    ) -> AsyncIterator[RolloutBlock | BlockSummary]:
        """Generate a response to each of these prompts; yields a block and its summary in turn.

        A deterministic engine puts the same prompts into the same blocks; otherwise blocks hold samples in completion
        order.

        Args:
            positions: (n,) the caller's positions of the samples.
            indices: (n,) indices into the prompts given to ``set_prompts``.
            seeds: (n,) sampling seeds.
        """
        with self.activity("generate"), translate_failures(self.where, "generate"):
            answers = self.engine.generate([self.prompts[i] for i in indices], seeds)
            blocks, stream = in_order if self.engine.deterministic else as_finished, self._new_stream()
            begin = self.activity.spans.clock()
            async for block in blocks(answers, len(indices), block_size):
                self.activity.spans.add("block", begin, samples=len(block))
                begin = self.activity.spans.clock()
                packed = RolloutBlock.pack([answer.rollout for answer in block])
                yield packed
                without = [answer for answer in block if answer.fault]
                yield BlockSummary(
                    stream=stream,
                    tokens=len(packed.sequences.tokens),
                    positions=tuple(positions[answer.position] for answer in block),
                    set_aside=tuple(positions[answer.position] for answer in without),
                    faults=tuple((answer.rollout.prompt.id, answer.fault) for answer in without),
                )

    async def set_aside(
        self, positions: Sequence[int], indices: Sequence[int], seeds: Sequence[int], fault: str
    ) -> tuple[RolloutBlock, BlockSummary]:
        """Return a placeholder block of quarantined samples, and its summary."""
        prompts = [self.prompts[i] for i in indices]
        answers = [self.engine.without(0, prompt, seed, fault) for prompt, seed in zip(prompts, seeds, strict=True)]
        faults = tuple((prompt.id, fault) for prompt in prompts)
        packed, where = RolloutBlock.pack([answer.rollout for answer in answers]), tuple(positions)
        tokens = len(packed.sequences.tokens)
        return packed, BlockSummary(
            stream=self._new_stream(), tokens=tokens, positions=where, set_aside=where, faults=faults
        )

    async def abandon(self) -> None:
        """Abort generation and an unfinished weight update."""
        await self._named("abandon", self.engine.abandon())

    async def decode(
        self, tokenizer_folder: str, trust_remote_code: bool, block: RolloutBlock
    ) -> list[tuple[int, str]]:
        """Return (seed, response as text) of each sample, without end and special tokens."""
        with translate_failures(self.where, "decode"):
            if self.tokenizer is None:
                self.tokenizer = load_tokenizer(tokenizer_folder, ModelConfig(trust_remote_code=trust_remote_code))
            ends = set(self.engine.end_tokens)
            responses = [block.sequences.response(i) for i in range(len(block))]
            responses = [ids[:-1] if len(ids) and int(ids[-1]) in ends else ids for ids in responses]
            texts = self.tokenizer.batch_decode(responses, skip_special_tokens=True)
            return list(zip(block.seeds.tolist(), texts, strict=True))

    async def init_weight_transfer_engine(self, init_info: dict[str, Any], seconds: float | None = None) -> None:
        """Connect to the trainer, within ``seconds`` if that is a rendezvous of all engines."""
        await self._named("connect", self.engine.connect(init_info, seconds))

    async def start_weight_update(self) -> None:
        """Begin a weight update; the engine does not serve until the new weights are verified."""
        self.engine.version = UNVERIFIED
        await self._named("publish", self.engine.start_update())

    async def update_weights(
        self, update_info: dict[str, Any], content: np.ndarray | None = None, seconds: float | None = None
    ) -> bool:
        """Load one chunk of weights; returns whether the chunk's file was found.

        Args:
            content: (bytes,) content of the chunk's file, if that is on another host.
            seconds: longest wait for the sender, if all engines receive together.
        """
        from rlhf.weights.shared_memory import is_here, local_copy

        if content is None and "path" in update_info and not is_here(update_info):
            return False
        with nullcontext(update_info) if content is None else local_copy(update_info, content) as chunk:
            await self._named("publish", self.engine.update(chunk, seconds))
        return True

    async def abort_transfer(self) -> None:
        """End a wait for the sender: another engine, for which all wait, is lost."""
        await self.engine.abort_transfer()

    async def finish_weight_update(self) -> None:
        """End a weight update."""
        await self._named("publish", self.engine.finish_update())

    async def load_adapter(self, adapter: AdapterWeights) -> None:
        """Replace the adapter; the engine does not serve until it is verified."""
        self.engine.version = UNVERIFIED
        await self._named("publish", self.engine.load_adapter(adapter))

    async def held_fingerprint(self) -> Fingerprint:
        """Fingerprint of the weights that the engine computes with."""
        return await self._named("fingerprint", self.engine.held_fingerprint())

    async def serve(self, version: int) -> None:
        """Serve with this version of the weights, whose fingerprint agreed with the trainer's."""
        await self._named("serve", self.engine.serve(version))

    async def sleep(self) -> None:
        """Release GPU memory while the trainer uses it."""
        await self._named("sleep", self.engine.sleep())

    async def wake(self, part: str) -> None:
        """Reacquire GPU memory: ``weights``, then ``kv_cache``."""
        await self._named("wake", self.engine.wake(part))

    async def stop(self) -> None:
        """Stop the engine's own processes; Ray ends this one."""
        self.engine.stop()

    async def _named(self, activity: str, call: Awaitable[Result]) -> Result:
        with self.activity(activity), translate_failures(self.where, activity):
            return await call


async def as_finished(
    answers: AsyncIterator[GeneratedAnswer], count: int, size: int
) -> AsyncIterator[list[GeneratedAnswer]]:
    """Yield blocks of answers in the order in which they finish."""
    finished: list[GeneratedAnswer] = []
    async for answer in answers:
        finished.append(answer)
        count -= 1
        if len(finished) == size or not count:
            yield finished
            finished = []


async def in_order(
    answers: AsyncIterator[GeneratedAnswer], count: int, size: int
) -> AsyncIterator[list[GeneratedAnswer]]:
    """Yield blocks in prompt order: positions 0 to size − 1, then the next ones."""
    finished: dict[int, GeneratedAnswer] = {}
    begin = 0
    async for answer in answers:
        finished[answer.position] = answer
        while begin < count and all(position in finished for position in range(begin, min(begin + size, count))):
            yield [finished.pop(position) for position in range(begin, min(begin + size, count))]
            begin += size
