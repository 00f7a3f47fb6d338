"""One vLLM engine that answers prompts, serves a known version of the weights, and can be given new ones."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import numpy as np
from vllm import SamplingParams
from vllm.config.weight_transfer import WeightTransferConfig
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.inputs import TokensPrompt
from vllm.outputs import RequestOutput
from vllm.v1.engine.async_llm import AsyncLLM

from rlhf.config.schema import ModelConfig, RolloutConfig
from rlhf.device import Device, engine_arguments
from rlhf.errors import MachineryError
from rlhf.types import UNVERIFIED, FinishReason, Prompt, Rollout
from rlhf.weights.fingerprint import Fingerprint, add


class RolloutEngine:
    """An ``AsyncLLM`` that answers only with weights whose version has been proven.

    ``prompt_tokens`` counts those of all answered prompts, ``cached_tokens`` those of them that another sample of the
    same prompt, or a prompt with the same beginning, had computed already.

    Args:
        folder: the model to load.
        max_length: longest sequence in tokens, prompt and response.
        end_tokens: token ids that end a response.
        transfer_backend: how new weights arrive, or None for an engine whose weights never change; such an engine
            serves version 0 from the start.
    """

    def __init__(
        self,
        folder: str | Path,
        model: ModelConfig,
        config: RolloutConfig,
        device: Device,
        max_length: int,
        end_tokens: Sequence[int],
        transfer_backend: str | None,
        sleeps: bool = False,
        seed: int = 0,
    ) -> None:
        self.config, self.end_tokens = config, list(end_tokens)
        self.prompt_tokens = self.cached_tokens = 0
        self.version = UNVERIFIED if transfer_backend else 0
        arguments = AsyncEngineArgs(
            model=str(folder),
            dtype=model.dtype,
            trust_remote_code=model.trust_remote_code,
            max_model_len=max_length,
            seed=seed,
            tensor_parallel_size=config.tensor_parallel,
            # Inside an actor vLLM would choose Ray and look for bundles of its own; its workers belong in this actor.
            distributed_executor_backend="mp" if config.tensor_parallel > 1 else None,
            enforce_eager=config.enforce_eager,
            skip_tokenizer_init=True,  # tokens in, tokens out
            logprobs_mode="processed_logprobs",  # after temperature, as the trainer's
            generation_config="vllm",  # no sampling defaults from the model's folder
            worker_extension_cls="rlhf.weights.held.HeldWeights",
            weight_transfer_config=WeightTransferConfig(backend=transfer_backend) if transfer_backend else None,
            disable_log_stats=True,
            **engine_arguments(device, config, sleeps),
        )
        self.llm = AsyncLLM.from_engine_args(arguments)

    async def generate(self, prompts: Sequence[Prompt], seeds: Sequence[int]) -> AsyncIterator[Rollout]:
        """Answer all prompts at once; yield each rollout as soon as it ends, in any order."""
        if self.version == UNVERIFIED:
            raise MachineryError("the engine was asked to serve before its weights were proven")
        tasks = [asyncio.create_task(self._answer(p, s)) for p, s in zip(prompts, seeds, strict=True)]
        try:
            for task in asyncio.as_completed(tasks):
                yield await task
        finally:
            for task in tasks:
                task.cancel()

    async def _answer(self, prompt: Prompt, seed: int) -> Rollout:
        sampling = SamplingParams(
            temperature=self.config.temperature,
            max_tokens=self.config.max_response_length,
            stop_token_ids=self.end_tokens,
            logprobs=0,
            seed=seed,
            detokenize=False,
        )
        version, last = self.version, None
        request = TokensPrompt(prompt_token_ids=list(prompt.tokens))
        async for output in self.llm.generate(request, sampling, request_id=uuid.uuid4().hex):
            last = output
        self.prompt_tokens += len(prompt.tokens)
        self.cached_tokens += (last and last.num_cached_tokens) or 0
        return _rollout(prompt, last, version, seed)

    async def sleep(self) -> None:
        """Give the GPU's memory back while others train; weights are dropped, since a publish follows."""
        self.version = UNVERIFIED
        await self.llm.sleep(level=2)

    async def wake(self, part: str) -> None:
        """Take memory again: ``weights`` before a publish, ``kv_cache`` after it."""
        await self.llm.wake_up(tags=[part])

    async def held_fingerprint(self) -> Fingerprint:
        """Fingerprint of the weights that the engine computes with, over its shards."""
        return add(await self.llm.collective_rpc("held_fingerprint"))

    async def serve(self, version: int) -> None:
        """Serve under this version from now on; nothing computed with older weights is reused."""
        await self.llm.reset_prefix_cache()
        self.version = version

    def stop(self) -> None:
        """End the engine and its worker processes."""
        self.llm.shutdown()


def _rollout(prompt: Prompt, output: RequestOutput | None, version: int, seed: int) -> Rollout:
    if output is None or not output.finished or not output.outputs[0].token_ids:
        raise MachineryError(f"the engine returned no response for prompt {prompt.id}")
    answer = output.outputs[0]
    tokens = np.array(answer.token_ids, dtype=np.int32)
    logprobs = [step[token].logprob for step, token in zip(answer.logprobs, answer.token_ids, strict=True)]
    return Rollout(
        prompt=prompt,
        tokens=tokens,
        logprobs=np.array(logprobs, dtype=np.float32),
        mask=np.ones(len(tokens), dtype=np.bool_),
        weight_version=version,
        finish_reason=FinishReason.STOP if answer.finish_reason == "stop" else FinishReason.LENGTH,
        seed=seed,
    )
