"""One vLLM engine: generates responses with a known version of the weights, and receives new weights."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Coroutine, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

import numpy as np
from vllm import SamplingParams
from vllm.config.weight_transfer import WeightTransferConfig
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.inputs.engine import tokens_input
from vllm.logprobs import FlatLogprobs
from vllm.outputs import RequestOutput
from vllm.sampling_params import RequestOutputKind
from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.engine.exceptions import EngineDeadError
from vllm.v1.engine.output_processor import RequestOutputCollector

from rlhf.config.schema import ModelConfig, RolloutConfig
from rlhf.device import Device, engine_arguments
from rlhf.errors import LostError, MachineryError
from rlhf.types import UNVERIFIED, FinishReason, Prompt, Rollout
from rlhf.weights.fingerprint import Fingerprint, add

Result = TypeVar("Result")
Request: TypeAlias = RequestOutputCollector | str
"""The queue for a prompt's output, or the reason why the engine refused the prompt."""


@dataclass(frozen=True, kw_only=True)
class Answer:
    """The result for one prompt of a call."""

    position: int
    """Index of the prompt in the call."""
    rollout: Rollout
    """The response, or a placeholder if generation failed."""
    fault: str = ""
    """Why generation failed; empty if it succeeded."""


class RolloutEngine:
    """An ``AsyncLLM`` that generates only with weights whose version has been verified.

    ``prompt_tokens`` counts the prompt tokens of all finished samples, ``cached_tokens`` those of them that came from
    the prefix cache.

    Args:
        folder: the model to load.
        max_length: longest sequence of prompt and response, in tokens.
        end_tokens: token ids that end a response.
        transfer_backend: backend of weight transfers, or None for an engine whose weights never change; such an engine
            serves version 0 from the start.
        deterministic: batch equal calls equally, so that they return the same responses bit for bit.
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
        deterministic: bool = False,
    ) -> None:
        self.config, self.end_tokens, self.deterministic = config, list(end_tokens), deterministic
        self.prompt_tokens = self.cached_tokens = 0
        self._pending: set[asyncio.Task[Any]] = set()
        """Tasks of all calls: two calls run at once when the engine takes over a failed engine's prompts."""
        self.version = UNVERIFIED if transfer_backend else 0
        arguments = AsyncEngineArgs(
            model=str(folder),
            dtype=model.dtype,
            trust_remote_code=model.trust_remote_code,
            max_model_len=max_length,
            seed=seed,
            tensor_parallel_size=config.tensor_parallel,
            # Inside an actor vLLM would choose Ray and reserve its own bundles; its workers must run within this actor.
            distributed_executor_backend="mp" if config.tensor_parallel > 1 else None,
            enforce_eager=config.enforce_eager,
            skip_tokenizer_init=True,  # tokens in, tokens out
            logprobs_mode="processed_logprobs",  # after temperature, like the trainer's
            generation_config="vllm",  # ignores sampling defaults in the model's folder
            worker_extension_cls="rlhf.weights.held.HeldWeights",
            weight_transfer_config=WeightTransferConfig(backend=transfer_backend) if transfer_backend else None,
            disable_log_stats=True,
            **engine_arguments(device, config, sleeps),
        )
        self.llm = AsyncLLM.from_engine_args(arguments)
        self.vocabulary = self.llm.model_config.get_vocab_size()

    async def adopt(self) -> list[int]:
        """Bind the engine's processes to this one, so that they end whenever it ends; returns their ids."""
        await self.llm.collective_rpc("pass_over_absent_head")
        return list(await self.llm.collective_rpc("end_with_parent"))

    async def generate(self, prompts: Sequence[Prompt], seeds: Sequence[int]) -> AsyncIterator[Answer]:
        """Generate for all prompts concurrently; yield each answer when it is complete, in any order.

        Raises:
            LostError: the engine's process has died.
            MachineryError: the engine's weights have not been verified.
        """
        if self.version == UNVERIFIED:
            raise MachineryError("the engine was called before its weights were verified")
        tasks: list[asyncio.Task[Answer]] = []
        try:
            await self._start(self._submit_all(prompts, seeds, tasks))
            for task in asyncio.as_completed(tasks):
                yield await task
        except EngineDeadError as error:
            raise LostError("the engine's own process is gone") from error
        finally:
            _cancel(tasks)

    async def abandon(self) -> None:
        """Abort all requests and an open update; on return the engine has dropped them. Pending calls fail."""
        while tasks := list(self._pending):
            await asyncio.sleep(0)  # a task that is cancelled before its first step would not abort its request
            _cancel(tasks)
            await asyncio.gather(*tasks, return_exceptions=True)
        await self.llm.collective_rpc("close_weight_update")

    async def start_update(self) -> None:
        """Start an update of the weights, after closing one that its sender did not finish."""
        await self.llm.collective_rpc("close_weight_update")
        await self.llm.start_weight_update()

    def _start(self, work: Coroutine[Any, Any, Result]) -> asyncio.Task[Result]:
        """Start a task that ``abandon`` cancels."""
        task = asyncio.create_task(work)
        self._pending.add(task)
        task.add_done_callback(self._pending.discard)
        return task

    async def _submit_all(
        self, prompts: Sequence[Prompt], seeds: Sequence[int], tasks: list[asyncio.Task[Answer]]
    ) -> None:
        """Submit all prompts in order, and append to ``tasks`` a task per answer.

        The other prompts of a batch affect the last bits of a prompt's log-probabilities. A deterministic engine
        therefore starts only when it has all prompts, and with an empty cache.
        """
        if self.deterministic:
            await self.llm.pause_generation(mode="keep", clear_cache=True)
        try:
            for position, (prompt, seed) in enumerate(zip(prompts, seeds, strict=True)):
                request = await self._submit(prompt, seed)
                tasks.append(self._start(self._wait_for_answer(position, prompt, seed, request, self.version)))
        finally:
            if self.deterministic:
                await self.llm.resume_generation()

    async def _submit(self, prompt: Prompt, seed: int) -> Request:
        sampling = SamplingParams(
            temperature=self.config.temperature,
            max_tokens=self.config.max_response_length,
            stop_token_ids=self.end_tokens,
            logprobs=0,  # of the sampled token alone
            flat_logprobs=True,
            seed=seed,
            detokenize=False,
            output_kind=RequestOutputKind.FINAL_ONLY,
        )
        if not all(0 <= token < self.vocabulary for token in prompt.tokens):
            return f"a token id is not below {self.vocabulary:,}, the model's vocabulary"  # would crash the engine
        # Not a list of ids, which vLLM renders in a thread pool, where prompts can overtake each other.
        tokens = tokens_input(list(prompt.tokens))
        try:
            return await self.llm.add_request(uuid.uuid4().hex, tokens, sampling)
        except EngineDeadError:
            raise
        except Exception as error:  # a prompt that the engine refuses is quarantined; the run continues
            return f"{type(error).__name__}: {error}"

    async def _wait_for_answer(
        self, position: int, prompt: Prompt, seed: int, request: Request, version: int
    ) -> Answer:
        if isinstance(request, str):
            return self.without(position, prompt, seed, request)
        try:
            output = await request.get()
        except EngineDeadError as error:
            raise LostError("the engine's own process is gone") from error
        except asyncio.CancelledError:
            await self.llm.abort(request.request_id, internal=True)
            raise
        except Exception as error:
            return self.without(position, prompt, seed, f"{type(error).__name__}: {error}")
        self.prompt_tokens += len(prompt.tokens)
        self.cached_tokens += getattr(output, "num_cached_tokens", 0) or 0
        if fault := _fault(output):
            return self.without(position, prompt, seed, fault)
        return Answer(position=position, rollout=_rollout(prompt, output, version, seed))

    def without(self, position: int, prompt: Prompt, seed: int, fault: str) -> Answer:
        """Placeholder for a failed prompt: a single end token that is not trained on.

        It does not contain the prompt's tokens, because other models might fail on them too.
        """
        end = self.end_tokens[0]
        rollout = Rollout(
            prompt=replace(prompt, tokens=(end,)),
            tokens=np.array([end], dtype=np.int32),
            logprobs=np.zeros(1, dtype=np.float32),
            mask=np.zeros(1, dtype=np.bool_),
            weight_version=self.version,
            finish_reason=FinishReason.SET_ASIDE,
            seed=seed,
        )
        return Answer(position=position, rollout=rollout, fault=fault)

    async def sleep(self) -> None:
        """Free the GPU's memory during training; the weights are discarded, because new ones follow."""
        self.version = UNVERIFIED
        await self.llm.sleep(level=2)

    async def wake(self, part: str) -> None:
        """Reallocate memory: ``weights`` before a weight transfer, ``kv_cache`` after it."""
        await self.llm.wake_up(tags=[part])

    async def held_fingerprint(self) -> Fingerprint:
        """Fingerprint of the weights that the engine computes with, over all its shards."""
        return add(await self.llm.collective_rpc("held_fingerprint"))

    async def serve(self, version: int) -> None:
        """Serve under this version from now on, after clearing the prefix cache of older weights.

        Raises:
            MachineryError: the engine still has requests, so that the cache cannot be cleared.
        """
        if not await self.llm.reset_prefix_cache():
            raise MachineryError(
                f"the engine cannot serve version {version}: it still has requests with older weights, so that its "
                "prefix cache cannot be cleared"
            )
        self.version = version

    def stop(self) -> None:
        """Stop the engine and its worker processes."""
        self.llm.shutdown()


def _cancel(tasks: Sequence[asyncio.Task[Any]]) -> None:
    """Cancel each task once: a second time would interrupt a task that is aborting its request."""
    for task in tasks:
        if not task.cancelling():
            task.cancel()


def _fault(output: object) -> str:
    """Why an engine's output is not a valid response; empty if it is valid."""
    if not isinstance(output, RequestOutput) or not output.finished or not output.outputs[0].token_ids:
        return "the engine returned no response"
    reason = output.outputs[0].finish_reason
    return "" if reason in ("stop", "length") else f"the engine ended the response: {reason}"


def _rollout(prompt: Prompt, output: RequestOutput, version: int, seed: int) -> Rollout:
    answer = output.outputs[0]
    tokens = np.array(answer.token_ids, dtype=np.int32)
    flat = answer.logprobs
    assert isinstance(flat, FlatLogprobs)
    assert flat.token_ids == list(answer.token_ids), "one log-probability a token, that of the sampled one"
    return Rollout(
        prompt=prompt,
        tokens=tokens,
        logprobs=np.array(flat.logprobs, dtype=np.float32),
        mask=np.ones(len(tokens), dtype=np.bool_),
        weight_version=version,
        finish_reason=FinishReason.STOP if answer.finish_reason == "stop" else FinishReason.LENGTH,
        seed=seed,
    )
