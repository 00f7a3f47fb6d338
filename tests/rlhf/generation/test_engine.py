"""Invalid outputs and abandoned calls of the engine, with vLLM's types and without a model."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from copy import copy
from types import SimpleNamespace
from typing import Any, TypeVar

import pytest
from vllm import SamplingParams
from vllm.logprobs import FlatLogprobs, Logprob
from vllm.outputs import CompletionOutput, RequestOutput

from rlhf.config.schema import RolloutConfig
from rlhf.errors import LostError, MachineryError
from rlhf.generation.engine import GeneratedAnswer, RolloutEngine
from rlhf.progress import PROGRESS
from rlhf.types import UNVERIFIED, FinishReason, Prompt
from rlhf.weights.aborts import ABORTED

PROMPT = Prompt(id=7, tokens=(5, 6))
END, VOCABULARY = 2, 10
T = TypeVar("T")


class Core:
    """Fake vLLM: accepts requests, which run until they are answered or aborted."""

    def __init__(self, answer: Any = None, takes: int = 100) -> None:
        """Args: answer is given to each request in the next step, if there is one; takes is how many it takes before
        it waits for ``go_on``."""
        self.answer, self.takes = answer, takes
        self.running: list[str] = []
        self.ahead: list[str] = []
        """Steps begun ahead of their turn."""
        self.sampled: list[SamplingParams] = []
        self.is_full, self.go_on = threading.Event(), threading.Event()
        self.is_dirty = False
        """Whether the batch holds requests that have ended, as vLLM's does until the next step."""
        scheduler = SimpleNamespace(has_requests=lambda: bool(self.running) or self.is_dirty)
        self.engine_core = SimpleNamespace(engine_core=SimpleNamespace(batch_queue=self.ahead, scheduler=scheduler))
        self.calls: list[tuple[str, dict[str, Any]]] = []
        self.is_received = True
        """What its workers say of weights that all engines receive together."""
        self.told = threading.Event()
        self.model_executor = SimpleNamespace(driver_worker=SimpleNamespace(abort_receiving=self.told.set))

    def add_request(self, name: str, request: Any, sampling: Any, lora_request: Any = None) -> None:
        if len(self.running) == self.takes:
            self.is_full.set()
            self.go_on.wait(60)
        if isinstance(self.answer, ValueError):
            raise self.answer
        self.sampled.append(sampling)
        self.running.append(name)

    def step(self) -> list[RequestOutput]:
        del self.ahead[:1]
        self.is_dirty = False
        if isinstance(self.answer, RuntimeError):
            raise self.answer
        if self.answer is None:
            return []
        answered, self.running = self.running, []
        self.is_dirty = bool(answered)
        return [replace_id(self.answer, name) for name in answered]

    def abort_request(self, names: list[str]) -> None:
        self.is_dirty = self.is_dirty or bool(names)
        self.running = [name for name in self.running if name not in names]

    def collective_rpc(self, method: str, kwargs: dict[str, Any]) -> list[Any]:
        """No weights are sent here, so that no update is ever open."""
        self.calls.append((method, kwargs))
        if method == "receive_within" and not self.is_received:
            self.told.wait(kwargs["seconds"])  # as one waits in vLLM's thread for another engine
        return [True, self.is_received]

    def has_unfinished_requests(self) -> bool:
        return bool(self.running)

    def reset_prefix_cache(self) -> bool:
        """Like vLLM's block pool, refuses while requests hold blocks."""
        return not self.running


def replace_id(answer: RequestOutput, name: str) -> RequestOutput:
    """The same answer to the request of this name."""
    found = copy(answer)
    found.request_id = name
    return found


def engine(core: Core) -> RolloutEngine:
    """An engine that serves version 3."""
    made = object.__new__(RolloutEngine)
    made.config, made.end_tokens, made.vocabulary = RolloutConfig(), [END], VOCABULARY
    made.deterministic, made.version = False, 3
    made.llm, made._unanswered, made._steps = core, {}, None
    made._adapter = made._base = None
    made._thread = ThreadPoolExecutor(1)
    return made


def run(scenario: Coroutine[Any, Any, T]) -> T:
    """Its result; a call that never ends is a failure."""
    return asyncio.run(asyncio.wait_for(scenario, 20))


async def answers(to: RolloutEngine, prompt: Prompt = PROMPT, count: int = 1) -> list[GeneratedAnswer]:
    return [answer async for answer in to.generate([prompt] * count, range(11, 11 + count))]


def output(tokens: list[int], reason: str) -> RequestOutput:
    logprobs = FlatLogprobs()
    logprobs.extend([{token: Logprob(logprob=-0.5)} for token in tokens])
    completion = CompletionOutput(
        index=0, text="", token_ids=tokens, cumulative_logprob=None, logprobs=logprobs, finish_reason=reason
    )
    return RequestOutput(
        request_id="x",
        prompt=None,
        prompt_token_ids=list(PROMPT.tokens),
        prompt_logprobs=None,
        outputs=[completion],
        finished=True,
    )


def test_a_response_is_an_answer() -> None:
    [answer] = run(answers(engine(Core(output([4, END], "stop")))))
    assert (answer.fault, answer.rollout.finish_reason, answer.rollout.seed) == ("", FinishReason.STOP, 11)
    assert answer.rollout.tokens.tolist() == [4, END] and answer.rollout.mask.all()
    assert answer.rollout.weight_version == 3


@pytest.mark.parametrize(
    ("given", "prompt", "fault"),
    [
        (output([], "stop"), PROMPT, "the engine returned no response"),
        (output([], "length"), PROMPT, "the engine returned no response"),
        (output([4], "abort"), PROMPT, "the engine ended the response: abort"),
        (ValueError("too long"), PROMPT, "ValueError: too long"),
        (
            output([4], "stop"),
            Prompt(id=7, tokens=(5, VOCABULARY)),
            "a token id is not below 10, the model's vocabulary",
        ),
    ],
)
def test_an_invalid_response_is_quarantined_with_its_reason(given: Any, prompt: Prompt, fault: str) -> None:
    [answer] = run(answers(engine(Core(given)), prompt))
    assert answer.fault == fault
    rollout = answer.rollout
    assert (rollout.finish_reason, rollout.prompt.id, rollout.seed) == (FinishReason.SET_ASIDE, 7, 11)
    assert rollout.prompt.tokens == (END,) and rollout.tokens.tolist() == [END], "nothing of the prompt goes on"
    assert not rollout.mask.any() and rollout.weight_version == 3


def test_the_policys_whole_distribution_is_sampled_at_the_recipes_temperature() -> None:
    core = Core(output([4, END], "stop"))
    sampling = engine(core)
    sampling.config = RolloutConfig(temperature=0.7, max_response_length=5)
    run(answers(sampling, count=2))
    assert [(each.temperature, each.max_tokens, each.seed) for each in core.sampled] == [(0.7, 5, 11), (0.7, 5, 12)]
    assert all(each.top_p == 1 and each.top_k <= 0 and each.min_p == 0 for each in core.sampled), "nothing is cut off"
    assert all(each.stop_token_ids == [END] for each in core.sampled)


def test_the_batch_is_clear_after_a_call() -> None:
    """Otherwise the order of the next call's requests in it would depend on this call."""

    async def scenario() -> None:
        made = engine(core := Core(output([4, END], "stop")))
        await answers(made, count=2)
        await made.serve(4)
        assert not core.is_dirty

    run(scenario())


def test_each_step_of_vllm_is_progress() -> None:
    async def scenario() -> None:
        before = PROGRESS.parts
        await answers(engine(Core(output([4, END], "stop"))), count=2)
        assert PROGRESS.parts == before + 1, "both are answered in one step"

    run(scenario())


def test_a_failure_of_vllm_is_the_loss_of_the_engine_for_all_calls() -> None:
    async def scenario() -> None:
        made = engine(Core(RuntimeError("out of blocks")))
        calls = [asyncio.create_task(answers(made, count=2)) for _ in range(2)]
        for result in await asyncio.gather(*calls, return_exceptions=True):
            assert isinstance(result, LostError) and "vLLM failed: RuntimeError: out of blocks" in str(result)

    run(scenario())


def test_a_call_that_is_given_up_after_its_first_answer_leaves_nothing_running() -> None:
    async def scenario() -> None:
        made = engine(core := Core(output([4, END], "stop")))
        call = made.generate([PROMPT] * 2, [11, 12])
        await anext(call)
        core.answer = None
        other = asyncio.create_task(answers(made, count=2))
        while len(core.running) < 2:
            await asyncio.sleep(0)
        await call.aclose()
        assert len(core.running) == 2, "the other call's"
        await made.abandon()
        assert not core.running
        await asyncio.gather(other, return_exceptions=True)

    run(scenario())


def abandoned(core: Core, calls: int, until: Callable[[], bool]) -> RolloutEngine:
    """An engine with pending calls of two prompts each, all of which fail when it abandons them."""

    async def scenario() -> RolloutEngine:
        made = engine(core)
        running: list[Awaitable[Any]] = [asyncio.create_task(answers(made, count=2)) for _ in range(calls)]
        while not until():
            await asyncio.sleep(0)
        core.ahead += ["a step"]
        asyncio.get_running_loop().call_later(0.01, core.go_on.set)
        await made.abandon()
        assert not core.running and not core.ahead and not core.is_dirty, "on return"
        results = await asyncio.gather(*running, return_exceptions=True)
        assert [type(result) for result in results] == [asyncio.CancelledError] * calls
        await made.serve(4)
        return made

    return run(scenario())


def test_all_calls_are_abandoned_not_the_last_alone() -> None:
    """An engine that takes over a failed engine's prompts has two calls at once."""
    core = Core()
    assert abandoned(core, calls=2, until=lambda: len(core.running) == 4).version == 4


@pytest.mark.parametrize("taken", [0, 1])
def test_a_call_that_is_still_being_handed_over_is_abandoned_too(taken: int) -> None:
    core = Core(takes=taken)
    assert abandoned(core, calls=1, until=core.is_full.is_set).version == 4


def test_no_version_is_served_while_something_of_an_older_one_is_computed() -> None:
    async def scenario() -> RolloutEngine:
        made = engine(Core())
        running = asyncio.create_task(answers(made))
        while not made.llm.running:
            await asyncio.sleep(0)
        made.version = UNVERIFIED
        with pytest.raises(MachineryError, match="cannot serve version 4: it still has requests with older weights"):
            await made.serve(4)
        running.cancel()
        return made

    assert run(scenario()).version == UNVERIFIED


def test_weights_are_received_with_a_limit_where_all_engines_receive_together() -> None:
    core = Core()
    made = engine(core)
    for seconds in (None, 7.0):
        run(made.connect({"rank_offset": 1}, seconds))
        run(made.update({"names": []}, seconds))
    assert [(method, kwargs.get("seconds")) for method, kwargs in core.calls] == [
        ("join_sender", None),
        ("update_weights", None),
        ("join_sender", 7.0),
        ("receive_within", 7.0),
    ]


@pytest.mark.parametrize("end", [lambda made: made.abort_transfer(), lambda made: made.abandon()])
def test_a_wait_for_another_engine_is_ended_and_the_engine_is_sound(end: Callable[[RolloutEngine], Any]) -> None:
    """Also before a step is repeated: vLLM's thread, which has to do that, is the one that waits."""
    core = Core()
    core.is_received = False

    async def scenario() -> str:
        made = engine(core)
        update = asyncio.create_task(made.update({"names": []}, 60.0))
        while not core.calls:
            await asyncio.sleep(0.01)
        await end(made)
        with pytest.raises(LostError, match="aborted") as caught:
            await update
        with pytest.raises(LostError, match="not all engines were connected within 5 s"):
            await made.connect({}, 5.0)
        return caught.value.kind

    assert run(scenario()) == ABORTED
