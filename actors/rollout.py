"""The Ray actor around a vLLM engine: finished samples leave in blocks while the rest are still being generated."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from actors.cluster import node_address
from actors.worker import named_failures
from rlhf.config.schema import ModelConfig
from rlhf.device import Device, engine_environment
from rlhf.models.load import load_tokenizer
from rlhf.tracking.quiet import redirect_output
from rlhf.types import UNVERIFIED, Prompt, Rollout, RolloutBlock
from rlhf.weights.fingerprint import Fingerprint


class RolloutActor:
    """One engine. vLLM is imported only in here: it is slow to import, and it reads its environment when it is."""

    def __init__(self, name: str, log: Path, device: Device, memory_gib: float, backend: str | None) -> None:
        redirect_output(log)
        self.name = f"{name} (node {node_address()}, process {os.getpid()})"
        os.environ.update(engine_environment(device, memory_gib, backend))
        self.prompts: Sequence[Prompt] = ()
        self.tokenizer: PreTrainedTokenizerBase | None = None

    async def build(self, *arguments: Any) -> str:
        """Start the engine, see ``RolloutEngine``; returns the actor's name with its node and process."""
        with named_failures(self.name, "start"):
            from rlhf.generation.engine import RolloutEngine

            self.engine = RolloutEngine(*arguments)
        return self.name

    async def use(self, prompts: Sequence[Prompt]) -> None:
        """Take the prompts; ``generate`` names them by their place."""
        self.prompts = prompts

    async def generate(
        self, chosen: Sequence[int], seeds: Sequence[int], block_size: int
    ) -> AsyncIterator[RolloutBlock | int]:
        """Answer the chosen prompts. Yields, in turn, a block and the number of samples in it, as they finish."""
        finished: list[Rollout] = []
        left = len(chosen)
        with named_failures(self.name, "generate"):
            async for rollout in self.engine.generate([self.prompts[i] for i in chosen], seeds):
                finished.append(rollout)
                left -= 1
                if len(finished) == block_size or not left:
                    yield RolloutBlock.pack(finished)
                    yield len(finished)
                    finished = []

    async def decode(self, tokenizer: str, trust_remote_code: bool, block: RolloutBlock) -> list[tuple[int, str]]:
        """(seed, response as text) of each sample, without special tokens."""
        with named_failures(self.name, "decode"):
            if self.tokenizer is None:
                self.tokenizer = load_tokenizer(tokenizer, ModelConfig(trust_remote_code=trust_remote_code))
            responses = [block.sequences.response(i) for i in range(len(block))]
            texts = self.tokenizer.batch_decode(responses, skip_special_tokens=True)
            return list(zip(block.seeds.tolist(), texts, strict=True))

    async def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        """Meet the trainer."""
        from vllm.distributed.weight_transfer.base import WeightTransferInitRequest

        await self.engine.llm.init_weight_transfer_engine(WeightTransferInitRequest(init_info=init_info))

    async def start_weight_update(self) -> None:
        """Begin an update; until it is proven, the engine does not serve."""
        self.engine.version = UNVERIFIED
        await self.engine.llm.start_weight_update()

    async def update_weights(self, update_info: dict[str, Any]) -> None:
        """Take one chunk of weights."""
        from vllm.distributed.weight_transfer.base import WeightTransferUpdateRequest

        await self.engine.llm.update_weights(WeightTransferUpdateRequest(update_info=update_info))

    async def finish_weight_update(self) -> None:
        """End an update."""
        await self.engine.llm.finish_weight_update()

    async def held_fingerprint(self) -> Fingerprint:
        """Fingerprint of the weights that the engine computes with."""
        return await self.engine.held_fingerprint()

    async def serve(self, version: int) -> None:
        """Serve this version, whose fingerprint was found to agree."""
        await self.engine.serve(version)

    async def sleep(self) -> None:
        """Give GPU memory back while others train."""
        await self.engine.sleep()

    async def wake(self, part: str) -> None:
        """Take GPU memory again: ``weights``, then ``kv_cache``."""
        await self.engine.wake(part)

    async def stop(self) -> None:
        """End the engine's own processes; Ray ends this one."""
        self.engine.stop()
