"""One vLLM engine: generates responses with a known version of the weights, and receives new weights."""

from __future__ import annotations

import asyncio
import traceback
import uuid
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import numpy as np
from vllm import SamplingParams
from vllm.config.weight_transfer import WeightTransferConfig
from vllm.engine.arg_utils import EngineArgs
from vllm.inputs.engine import tokens_input
from vllm.logprobs import FlatLogprobs
from vllm.lora.request import LoRARequest
from vllm.outputs import RequestOutput
from vllm.sampling_params import RequestOutputKind
from vllm.usage.usage_lib import UsageContext
from vllm.v1.engine.llm_engine import LLMEngine

from rlhf.config.schema import LoRAConfig, ModelConfig, RolloutConfig
from rlhf.device import Device, engine_arguments, prepare_engine_thread
from rlhf.errors import LostError, MachineryError, UserError
from rlhf.progress import PROGRESS
from rlhf.types import UNVERIFIED, FinishReason, Prompt, Rollout
from rlhf.weights.aborts import ABORTED
from rlhf.weights.adapter import NUMBER, RANKS, AdapterWeights
from rlhf.weights.fingerprint import Fingerprint, add

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")
Request = tuple[str, Prompt, int]
"""A request's id, its prompt and its sampling seed."""


@dataclass(frozen=True, kw_only=True)
class GeneratedAnswer:
    """The result for one prompt of a call."""

    position: int
    """Index of the prompt in the call."""
    rollout: Rollout
    """The response, or a placeholder if generation failed."""
    fault: str = ""
    """Why generation failed; empty if it succeeded."""


class RolloutEngine:
    """vLLM in this process; it generates only with weights whose version has been verified.

    A process of its own for vLLM's loop, as ``AsyncLLM`` has, costs an import of vLLM at the start and a message per
    step. Here one thread makes all calls to vLLM, so that the event loop stays free to answer; it is always the same
    thread because vLLM binds the thread that starts it, and that thread's helpers, to cores.

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
        self.version = UNVERIFIED if transfer_backend else 0
        lora = model.engine_lora if transfer_backend else None
        arguments = EngineArgs(
            model=str(folder),
            dtype=model.dtype,
            trust_remote_code=model.trust_remote_code,
            max_model_len=max_length,
            seed=seed,
            tensor_parallel_size=config.tensor_parallel,
            # Inside an actor vLLM would choose Ray and reserve its own bundles; its workers must run within this actor.
            distributed_executor_backend="mp" if config.tensor_parallel > 1 else None,
            enforce_eager=config.enforce_eager,
            max_num_seqs=config.max_num_seqs,
            max_num_batched_tokens=config.max_num_batched_tokens,
            skip_tokenizer_init=True,  # tokens in, tokens out
            logprobs_mode="processed_logprobs",  # after temperature, like the trainer's
            generation_config="vllm",  # ignores sampling defaults in the model's folder
            worker_extension_cls="rlhf.weights.held.HeldWeights",
            weight_transfer_config=WeightTransferConfig(backend=transfer_backend) if transfer_backend else None,
            disable_log_stats=True,
            **(_adapter_arguments(lora) if lora else {}),
            **engine_arguments(device, config, sleeps),
        )
        self._adapter = LoRARequest("policy", NUMBER, "memory") if lora else None
        """What tells vLLM to compute a request with the adapter; the path is not read, as the adapter is loaded."""
        self._base: Fingerprint | None = None
        """Fingerprint of the weights without adapter; None while they change."""
        self._thread = ThreadPoolExecutor(1, "vllm", prepare_engine_thread, (device,))
        self._unanswered: dict[str, asyncio.Queue[RequestOutput | BaseException]] = {}
        """Where each request's output goes, by request id. Two calls run at once when the engine takes over a failed
        engine's prompts."""
        self._steps: asyncio.Task[None] | None = None
        """Takes vLLM's steps while requests are unanswered."""
        # The context of vLLM's class LLM has the limits for offline use; those of other contexts are lower.
        start = self._thread.submit(LLMEngine.from_engine_args, arguments, UsageContext.LLM_CLASS)
        try:
            self.llm: LLMEngine = start.result()
        except ValueError as error:
            if lora and "support LoRA" in str(error):
                raise _no_adapters(error) from error
            raise
        self.vocabulary = self.llm.model_config.get_vocab_size()

    async def _call(
        self, function: Callable[Parameters, Result], *args: Parameters.args, **kwargs: Parameters.kwargs
    ) -> Result:
        """Call a function in vLLM's thread, after all earlier calls."""
        return await asyncio.wrap_future(self._thread.submit(function, *args, **kwargs))

    async def call_workers(self, method: str, **arguments: Any) -> list[Any]:
        """Call a method of vLLM's workers; returns one result per tensor-parallel shard.

        Raises:
            LostError: a worker that is a process of its own is gone.
        """
        try:
            return await self._call(self.llm.collective_rpc, method, kwargs=arguments)
        except Exception as error:
            if getattr(self.llm.model_executor, "is_failed", False):
                raise _vllm_failed(error) from error
            raise

    async def prepare_workers(self) -> list[int]:
        """Prepare the workers for new weights; returns the ids of those that are processes of their own.

        Such processes are bound to this one, so that they end whenever it ends.
        """
        await self.call_workers("pass_over_absent_head")
        await self.call_workers("repack_experts")
        return await self.call_workers("end_with_parent") if self.config.tensor_parallel > 1 else []

    async def generate(self, prompts: Sequence[Prompt], seeds: Sequence[int]) -> AsyncIterator[GeneratedAnswer]:
        """Generate for all prompts concurrently; yield each answer when it is complete, in any order.

        Raises:
            LostError: vLLM has failed, and the engine must be replaced.
            MachineryError: the engine's weights have not been verified.
        """
        if self.version == UNVERIFIED:
            raise MachineryError("the engine was called before its weights were verified")
        requests = [(uuid.uuid4().hex, prompt, seed) for prompt, seed in zip(prompts, seeds, strict=True)]
        positions = {name: position for position, (name, _, _) in enumerate(requests)}
        outputs: asyncio.Queue[RequestOutput | BaseException] = asyncio.Queue()
        self._unanswered |= dict.fromkeys(positions, outputs)
        try:
            refused = await self._call(self._submit, requests)
            version = self.version
            for name, fault in refused.items():
                self._unanswered.pop(name, None)
                _, prompt, seed = requests[positions[name]]
                yield self.without(positions[name], prompt, seed, fault)
            if self._steps is None or self._steps.done():
                self._steps = asyncio.create_task(self._take_steps())
            for _ in range(len(requests) - len(refused)):
                output = await outputs.get()
                if isinstance(output, BaseException):
                    raise output
                position = positions[output.request_id]
                _, prompt, seed = requests[position]
                yield self._answer(position, prompt, seed, output, version)
        finally:
            self._abort(positions)

    def _submit(self, requests: Sequence[Request]) -> dict[str, str]:
        """Submit the requests in order, before the next step; returns why vLLM refused some, by id.

        The other prompts of a batch affect the last bits of a prompt's log-probabilities. A deterministic engine
        therefore starts each call with an empty cache.
        """
        if self.deterministic:
            self.llm.reset_prefix_cache()
        refused = {}
        for name, prompt, seed in requests:
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
            if not all(0 <= token < self.vocabulary for token in prompt.tokens):  # would crash vLLM
                refused[name] = f"a token id is not below {self.vocabulary:,}, the model's vocabulary"
                continue
            try:
                self.llm.add_request(name, tokens_input(list(prompt.tokens)), sampling, lora_request=self._adapter)
            except Exception as error:  # the prompt is quarantined; the run continues
                refused[name] = f"{type(error).__name__}: {error}"
        return refused

    async def _take_steps(self) -> None:
        """Take vLLM's steps until all requests are answered."""
        try:
            while self._unanswered:
                finished = await self._call(self.llm.step)
                PROGRESS.part_done()
                for output in finished:
                    if outputs := self._unanswered.pop(output.request_id, None):
                        outputs.put_nowait(output)
            await self._call(self._finish_steps)
        except Exception as error:
            traceback.print_exc()
            self._fail(self._unanswered, _vllm_failed(error))

    def _fail(self, requests: Iterable[str], error: BaseException) -> list[str]:
        """Answer those of the requests that are unanswered with an error; returns them."""
        unanswered = {name: outputs for name in list(requests) if (outputs := self._unanswered.pop(name, None))}
        for outputs in unanswered.values():
            outputs.put_nowait(error)
        return list(unanswered)

    def _abort(self, requests: Iterable[str]) -> asyncio.Future[None]:
        """Abort those of the requests that are unanswered; the result is ready when vLLM has dropped them."""
        unanswered = self._fail(requests, asyncio.CancelledError())
        return asyncio.wrap_future(self._thread.submit(self.llm.abort_request, unanswered))

    async def abandon(self) -> None:
        """Abort all requests and an open update; on return the engine has dropped them. Pending calls fail."""
        await self.abort_transfer()
        await self._abort(self._unanswered)
        await self._call(self._finish_steps)
        await self.call_workers("close_weight_update")

    def _finish_steps(self) -> None:
        """Let vLLM clear its batch when no request is left, and finish steps that it has begun ahead of their turn.

        What is left of earlier requests in the batch would change the order of the next ones.
        """
        core = self.llm.engine_core.engine_core
        while not self.llm.has_unfinished_requests() and (core.scheduler.has_requests() or core.batch_queue):
            self.llm.step()

    def _answer(self, position: int, prompt: Prompt, seed: int, output: object, version: int) -> GeneratedAnswer:
        if fault := _fault(output):
            return self.without(position, prompt, seed, fault)
        assert isinstance(output, RequestOutput)
        return GeneratedAnswer(position=position, rollout=_rollout(prompt, output, version, seed))

    def without(self, position: int, prompt: Prompt, seed: int, fault: str) -> GeneratedAnswer:
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
            cached_tokens=0,
        )
        return GeneratedAnswer(position=position, rollout=rollout, fault=fault)

    async def sleep(self) -> None:
        """Free the GPU's memory during training; the weights are discarded, because new ones follow."""
        self.version = UNVERIFIED
        await self._call(self.llm.sleep, level=2)

    async def wake(self, part: str) -> None:
        """Reallocate memory: ``weights`` before a weight transfer, ``kv_cache`` after it."""
        await self._call(self.llm.wake_up, tags=[part])

    async def connect(self, init_info: dict[str, Any], seconds: float | None = None) -> None:
        """Connect to the trainer that sends new weights, and leave the group of the last one.

        Args:
            seconds: limit of the rendezvous, if there is one.

        Raises:
            LostError: of kind ``ABORTED``: others did not come to the rendezvous.
        """
        if not all(await self.call_workers("join_sender", init_info=init_info, seconds=seconds)):
            raise LostError(f"not all engines were connected within {seconds:.0f} s", kind=ABORTED)

    async def start_update(self) -> None:
        """Start an update of the weights, after closing one that its sender did not finish."""
        self._base = None
        await self.call_workers("close_weight_update")
        await self.call_workers("start_weight_update")

    async def update(self, update_info: dict[str, Any], seconds: float | None = None) -> None:
        """Load one chunk of weights.

        Args:
            seconds: longest wait for the sender, if all engines receive together.

        Raises:
            LostError: of kind ``ABORTED``: the wait was ended. The update is still open.
        """
        if seconds is None:
            await self.call_workers("update_weights", update_info=update_info)
        elif not all(await self.call_workers("receive_within", update_info=update_info, seconds=seconds)):
            raise LostError("the transfer of weights was aborted", kind=ABORTED)

    async def abort_transfer(self) -> None:
        """End a wait for the sender at once, if vLLM's worker is in this process; others end it after their limit."""
        if (worker := getattr(self.llm.model_executor, "driver_worker", None)) is not None:
            await asyncio.to_thread(worker.abort_receiving)  # vLLM's own thread is the one that waits

    async def finish_update(self) -> None:
        """Finish an update of the weights."""
        await self.call_workers("finish_weight_update")

    async def load_adapter(self, adapter: AdapterWeights) -> None:
        """Replace the adapter.

        Raises:
            UserError: vLLM's model cannot adapt some of its layers.
        """
        [unknown] = await self.call_workers("load_adapter", adapter=adapter)
        if unknown:
            names = ", ".join(sorted({name.rpartition(".")[2] for name in unknown}))
            raise UserError(
                f"model.lora.publish = adapter and adapters of {names}",
                "vLLM's model does not have these as layers that it can adapt",
                "model.lora.publish=merged, or other model.lora.targets",
            )

    async def held_fingerprint(self) -> Fingerprint:
        """Fingerprint of the weights that the engine computes with, over all its shards, and of its adapter."""
        if self._base is None:
            self._base = add(await self.call_workers("held_fingerprint"))
        return self._base | add(await self.call_workers("adapter_fingerprint") if self._adapter else [])

    async def serve(self, version: int) -> None:
        """Serve under this version from now on, after clearing the prefix cache of older weights.

        Raises:
            MachineryError: the engine still has requests, so that the cache cannot be cleared.
        """
        if not await self._call(self.llm.reset_prefix_cache):
            raise MachineryError(
                f"the engine cannot serve version {version}: it still has requests with older weights, so that its "
                "prefix cache cannot be cleared"
            )
        self.version = version

    def stop(self) -> None:
        """Stop vLLM and its worker processes."""
        self._thread.submit(self.llm.engine_core.shutdown).result()
        self._thread.shutdown()


def _adapter_arguments(lora: LoRAConfig) -> dict[str, Any]:
    """vLLM's arguments for one adapter."""
    rank = next(rank for rank in RANKS if rank >= lora.rank)
    return {"enable_lora": True, "max_loras": 1, "max_cpu_loras": 1, "max_lora_rank": rank}


def _no_adapters(error: ValueError) -> UserError:
    fix = "model.lora.publish=merged"
    return UserError("model.lora.publish = adapter and a model of which vLLM serves no adapters", str(error), fix)


def _vllm_failed(error: Exception) -> LostError:
    return LostError(f"vLLM failed: {type(error).__name__}: {error}", kind="failed")


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
        cached_tokens=output.num_cached_tokens or 0,
    )
