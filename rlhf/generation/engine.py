"""One vLLM engine that answers prompts, serves a known version of the weights, and can be given new ones."""

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
Asked: TypeAlias = RequestOutputCollector | str
"""Where the engine puts a prompt's answer, or why it does not take the prompt."""


@dataclass(frozen=True, kw_only=True)
class Answer:
    """The answer to the prompt at ``place`` of a call. ``fault`` says why there is no response, where there is none."""

    place: int
    rollout: Rollout
    fault: str = ""


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
        deterministic: batch the same prompts in the same way each time, so that they get the same answers to the bit.
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
        self._under_way: set[asyncio.Task[Any]] = set()
        """Of all calls: one that is given a dead peer's prompts beside its own has two at once."""
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
        self.vocabulary = self.llm.model_config.get_vocab_size()

    async def adopt(self) -> list[int]:
        """Bind the engine's processes to this one, so that they end with it however it ends; returns their ids."""
        await self.llm.collective_rpc("pass_over_absent_head")
        return list(await self.llm.collective_rpc("end_with_parent"))

    async def generate(self, prompts: Sequence[Prompt], seeds: Sequence[int]) -> AsyncIterator[Answer]:
        """Answer all prompts at once; yield each answer as soon as it ends, in any order.

        Raises:
            LostError: the engine's process is gone.
        """
        if self.version == UNVERIFIED:
            raise MachineryError("the engine was asked to serve before its weights were proven")
        tasks: list[asyncio.Task[Answer]] = []
        try:
            await self._begin(self._ask_all(prompts, seeds, tasks))
            for task in asyncio.as_completed(tasks):
                yield await task
        except EngineDeadError as error:
            raise LostError("the engine's own process is gone") from error
        finally:
            _cancel(tasks)

    async def abandon(self) -> None:
        """Drop all that is being generated, and an open update: on return the engine has been told so. The calls that
        asked for it fail."""
        while tasks := list(self._under_way):
            await asyncio.sleep(0)  # a task that is cancelled before its first step would tell the engine nothing
            _cancel(tasks)
            await asyncio.gather(*tasks, return_exceptions=True)
        await self.llm.collective_rpc("close_weight_update")

    async def start_update(self) -> None:
        """Begin an update of the weights. One that its sender never finished is closed first, however it got here."""
        await self.llm.collective_rpc("close_weight_update")
        await self.llm.start_weight_update()

    def _begin(self, work: Coroutine[Any, Any, Result]) -> asyncio.Task[Result]:
        """Begin something that ``abandon`` ends."""
        task = asyncio.create_task(work)
        self._under_way.add(task)
        task.add_done_callback(self._under_way.discard)
        return task

    async def _ask_all(
        self, prompts: Sequence[Prompt], seeds: Sequence[int], tasks: list[asyncio.Task[Answer]]
    ) -> None:
        """Hand over all prompts, in their order; ``tasks`` grows by what waits for each answer.

        What a prompt is batched with moves the last bits of its log-probabilities, so a deterministic engine computes
        nothing before it has all of them, and nothing from what it kept of calls before.
        """
        if self.deterministic:
            await self.llm.pause_generation(mode="keep", clear_cache=True)
        try:
            for place, (prompt, seed) in enumerate(zip(prompts, seeds, strict=True)):
                asked = await self._ask(prompt, seed)
                tasks.append(self._begin(self._answer(place, prompt, seed, asked, self.version)))
        finally:
            if self.deterministic:
                await self.llm.resume_generation()

    async def _ask(self, prompt: Prompt, seed: int) -> Asked:
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
            return f"a token is not among the model's {self.vocabulary:,}"  # the engine would take it, and die of it
        # Tokens as such, not a prompt still to be rendered: those wait in a pool of threads, and overtake each other.
        request = tokens_input(list(prompt.tokens))
        try:
            return await self.llm.add_request(uuid.uuid4().hex, request, sampling)
        except EngineDeadError:
            raise
        except Exception as error:  # a prompt that the engine does not take costs that prompt, not the run
            return f"{type(error).__name__}: {error}"

    async def _answer(self, place: int, prompt: Prompt, seed: int, asked: Asked, version: int) -> Answer:
        if isinstance(asked, str):
            return self.without(place, prompt, seed, asked)
        try:
            output = await asked.get()
        except EngineDeadError as error:
            raise LostError("the engine's own process is gone") from error
        except asyncio.CancelledError:
            await self.llm.abort(asked.request_id, internal=True)
            raise
        except Exception as error:
            return self.without(place, prompt, seed, f"{type(error).__name__}: {error}")
        self.prompt_tokens += len(prompt.tokens)
        self.cached_tokens += getattr(output, "num_cached_tokens", 0) or 0
        if fault := _fault(output):
            return self.without(place, prompt, seed, fault)
        return Answer(place=place, rollout=_rollout(prompt, output, version, seed))

    def without(self, place: int, prompt: Prompt, seed: int, fault: str) -> Answer:
        """What stands in the place of a response that there is not: an end token that nothing is learned from.

        Nor does the prompt appear in it: what the engine fails on, the other models may fail on too.
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
        return Answer(place=place, rollout=rollout, fault=fault)

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
        """Serve under this version from now on; nothing computed with older weights is reused.

        Raises:
            MachineryError: the engine is still computing, and keeps what it has: it would be reused.
        """
        if not await self.llm.reset_prefix_cache():
            raise MachineryError(
                f"the engine cannot serve version {version}: it is still answering with older weights, and so keeps "
                "its prefix cache"
            )
        self.version = version

    def stop(self) -> None:
        """End the engine and its worker processes."""
        self.llm.shutdown()


def _cancel(tasks: Sequence[asyncio.Task[Any]]) -> None:
    """Once each: a second time would interrupt a task that is telling the engine to drop its request."""
    for task in tasks:
        if not task.cancelling():
            task.cancel()


def _fault(output: object) -> str:
    """Why an engine's output is no response; empty where it is one."""
    if not isinstance(output, RequestOutput) or not output.finished or not output.outputs[0].token_ids:
        return "the engine gave no response"
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
