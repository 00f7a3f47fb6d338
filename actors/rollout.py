"""The Ray actor around a vLLM engine: finished samples leave in blocks while the rest are still being generated."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import AsyncIterator, Awaitable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from transformers import PreTrainedTokenizerBase

from actors.process import Doing, Whereabouts, dump_stacks_on_signal, whereabouts
from actors.worker import named_failures
from rlhf.config.schema import ModelConfig
from rlhf.device import Device, engine_environment
from rlhf.models.folder import load_tokenizer
from rlhf.tracking.memory import Memory, memory_here
from rlhf.tracking.quiet import redirect_output
from rlhf.tracking.spans import Taken
from rlhf.types import UNVERIFIED, Prompt, RolloutBlock
from rlhf.weights.fingerprint import Fingerprint

if TYPE_CHECKING:
    from rlhf.generation.engine import Answer

Result = TypeVar("Result")


@dataclass(frozen=True, kw_only=True)
class Answered:
    """What the controller is told of a block: which of the given prompts it answers, by place, and which it could not.

    ``set_aside`` are the places that have no response, ``faults`` their (prompt id, reason).
    """

    places: tuple[int, ...]
    set_aside: tuple[int, ...]
    faults: tuple[tuple[int, str], ...]


class RolloutActor:
    """One engine. vLLM is imported only in here: it is slow to import, and it reads its environment when it is."""

    def __init__(self, name: str, log: Path, device: Device, memory_gib: float, backend: str | None) -> None:
        redirect_output(log)
        dump_stacks_on_signal()
        self.where = whereabouts(name, log)
        self.doing = Doing()
        os.environ.update(engine_environment(device, memory_gib, backend))
        self.prompts: Sequence[Prompt] = ()
        self.tokenizer: PreTrainedTokenizerBase | None = None

    async def build(self, *arguments: Any) -> Whereabouts:
        """Start the engine, see ``RolloutEngine``; returns where the actor is."""
        with self.doing("start"), named_failures(self.where, "start"):
            from rlhf.generation.engine import RolloutEngine

            self.engine = RolloutEngine(*arguments)
            own = [child.pid for child in multiprocessing.active_children() if child.pid]
            self.where = replace(self.where, children=tuple({*own, *await self.engine.adopt()}))
        return self.where

    async def pulse(self) -> tuple[str, float]:
        """What this actor is doing, and for how many seconds."""
        return self.doing.pulse()

    async def spans(self) -> Taken:
        """What this actor did since it was asked last."""
        return self.doing.spans.take()

    async def memory(self) -> Memory:
        """What this actor's processes hold."""
        return memory_here(self.where.children)

    async def use(self, prompts: Sequence[Prompt]) -> None:
        """Take the prompts; ``generate`` names them by their place."""
        self.prompts = prompts

    async def generate(
        self, places: Sequence[int], chosen: Sequence[int], seeds: Sequence[int], block_size: int
    ) -> AsyncIterator[RolloutBlock | Answered]:
        """Answer the chosen prompts. Yields, in turn, a block and which of the ``places`` it answers.

        A deterministic engine always puts the same prompts into a block; others put in what finished together.

        Args:
            places: (n,) what the caller calls each of the prompts.
            chosen: (n,) which of the prompts that ``use`` gave.
            seeds: (n,) of each answer.
        """
        with self.doing("generate"), named_failures(self.where, "generate"):
            answers = self.engine.generate([self.prompts[i] for i in chosen], seeds)
            blocks = in_order if self.engine.deterministic else as_finished
            begin = self.doing.spans.clock()
            async for block in blocks(answers, len(chosen), block_size):
                self.doing.spans.add("block", begin, samples=len(block))
                begin = self.doing.spans.clock()
                yield RolloutBlock.pack([answer.rollout for answer in block])
                without = [answer for answer in block if answer.fault]
                yield Answered(
                    places=tuple(places[answer.place] for answer in block),
                    set_aside=tuple(places[answer.place] for answer in without),
                    faults=tuple((answer.rollout.prompt.id, answer.fault) for answer in without),
                )

    async def set_aside(
        self, places: Sequence[int], chosen: Sequence[int], seeds: Sequence[int], fault: str
    ) -> tuple[RolloutBlock, Answered]:
        """A block of samples that are given up, and what the controller is told of it."""
        prompts = [self.prompts[i] for i in chosen]
        answers = [self.engine.without(0, prompt, seed, fault) for prompt, seed in zip(prompts, seeds, strict=True)]
        faults = tuple((prompt.id, fault) for prompt in prompts)
        answered = Answered(places=tuple(places), set_aside=tuple(places), faults=faults)
        return RolloutBlock.pack([answer.rollout for answer in answers]), answered

    async def abandon(self) -> None:
        """Drop what is being generated."""
        await self.engine.abandon()

    async def decode(self, tokenizer: str, trust_remote_code: bool, block: RolloutBlock) -> list[tuple[int, str]]:
        """(seed, response as text) of each sample, without end and special tokens."""
        with named_failures(self.where, "decode"):
            if self.tokenizer is None:
                self.tokenizer = load_tokenizer(tokenizer, ModelConfig(trust_remote_code=trust_remote_code))
            ends = set(self.engine.end_tokens)
            responses = [block.sequences.response(i) for i in range(len(block))]
            responses = [ids[:-1] if len(ids) and int(ids[-1]) in ends else ids for ids in responses]
            texts = self.tokenizer.batch_decode(responses, skip_special_tokens=True)
            return list(zip(block.seeds.tolist(), texts, strict=True))

    async def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        """Meet the trainer."""
        from vllm.distributed.weight_transfer.base import WeightTransferInitRequest

        request = WeightTransferInitRequest(init_info=init_info)
        await self._named("connect", self.engine.llm.init_weight_transfer_engine(request))

    async def start_weight_update(self) -> None:
        """Begin an update; until it is proven, the engine does not serve."""
        self.engine.version = UNVERIFIED
        await self._named("publish", self.engine.llm.start_weight_update())

    async def update_weights(self, update_info: dict[str, Any], content: np.ndarray | None = None) -> bool:
        """Take one chunk of weights; returns whether it could.

        Args:
            content: (bytes,) what is in the chunk's file, where that is on another host.
        """
        from vllm.distributed.weight_transfer.base import WeightTransferUpdateRequest

        from rlhf.weights.shared_memory import local_copy

        if content is None and not os.path.exists(update_info.get("path", "/")):
            return False
        with nullcontext(update_info) if content is None else local_copy(update_info, content) as chunk:
            request = WeightTransferUpdateRequest(update_info=chunk)
            await self._named("publish", self.engine.llm.update_weights(request))
        return True

    async def finish_weight_update(self) -> None:
        """End an update."""
        await self._named("publish", self.engine.llm.finish_weight_update())

    async def held_fingerprint(self) -> Fingerprint:
        """Fingerprint of the weights that the engine computes with."""
        return await self._named("prove", self.engine.held_fingerprint())

    async def serve(self, version: int) -> None:
        """Serve this version, whose fingerprint was found to agree."""
        await self._named("serve", self.engine.serve(version))

    async def sleep(self) -> None:
        """Give GPU memory back while others train."""
        await self._named("sleep", self.engine.sleep())

    async def wake(self, part: str) -> None:
        """Take GPU memory again: ``weights``, then ``kv_cache``."""
        await self._named("wake", self.engine.wake(part))

    async def stop(self) -> None:
        """End the engine's own processes; Ray ends this one."""
        self.engine.stop()

    async def _named(self, doing: str, call: Awaitable[Result]) -> Result:
        with self.doing(doing), named_failures(self.where, doing):
            return await call


async def as_finished(answers: AsyncIterator[Answer], count: int, size: int) -> AsyncIterator[list[Answer]]:
    """Blocks of what finished together: nothing waits for the slowest."""
    finished: list[Answer] = []
    async for answer in answers:
        finished.append(answer)
        count -= 1
        if len(finished) == size or not count:
            yield finished
            finished = []


async def in_order(answers: AsyncIterator[Answer], count: int, size: int) -> AsyncIterator[list[Answer]]:
    """The same blocks whatever finishes first: places 0 to size − 1, then the next ones."""
    finished: dict[int, Answer] = {}
    begin = 0
    async for answer in answers:
        finished[answer.place] = answer
        while begin < count and all(place in finished for place in range(begin, min(begin + size, count))):
            yield [finished.pop(place) for place in range(begin, min(begin + size, count))]
            begin += size
