"""A real engine by itself: the prefix cache, prompts that it does not take, answers that are the same to the bit."""

from __future__ import annotations

import asyncio
import os
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from rlhf.types import FinishReason, RolloutBlock

if TYPE_CHECKING:
    from rlhf.generation.engine import GeneratedAnswer, RolloutEngine

PROMPT, SAMPLES = 300, 4


@dataclass(frozen=True, kw_only=True)
class Seen:
    """``cached`` tokens of four samples of one prompt, of four more, of four more after new weights, and twice of four
    more by the engine that gives the same answers; what came of
    ``bad`` prompts among good ones; and log-probabilities of the same prompts asked ``twice``, after other prompts the
    second time; and the ``threads`` that vLLM computes with."""

    cached: list[int]
    bad: list[GeneratedAnswer]
    twice: list[list[list[float]]]
    threads: int
    limits: tuple[int, int]
    """Sequences and tokens of a batch."""


def see(folder: Path) -> Seen:
    """In a process of its own: vLLM reads its environment when it is imported."""
    from rlhf.config.schema import ModelConfig, RolloutConfig
    from rlhf.device import engine_environment

    config = RolloutConfig(max_response_length=4, enforce_eager=True)
    import torch

    torch.set_num_threads(1)  # as in a worker of Ray's that had imported PyTorch before it became an engine
    os.environ.update(engine_environment("cpu", config, None))
    from transformers import LlamaConfig, LlamaForCausalLM

    from rlhf.generation.engine import RolloutEngine
    from rlhf.types import Prompt

    sizes = {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    LlamaForCausalLM(LlamaConfig(vocab_size=64, max_position_embeddings=512, **sizes)).save_pretrained(folder)
    prompt = Prompt(id=0, tokens=tuple(i % 60 for i in range(PROMPT)))

    others = [Prompt(id=i, tokens=tuple((i + j) % 60 for j in range(9 + i))) for i in range(24)]

    async def log_probabilities(engine: RolloutEngine) -> list[list[float]]:
        answers = [answer async for answer in engine.generate(others, range(len(others)))]
        return [answer.rollout.logprobs.tolist() for answer in sorted(answers, key=lambda answer: answer.position)]

    async def cached_tokens(engine: RolloutEngine) -> int:
        answers = [answer async for answer in engine.generate([prompt] * SAMPLES, range(SAMPLES))]
        assert len(answers) == SAMPLES
        return sum(answer.rollout.cached_tokens for answer in answers)

    async def run() -> Seen:
        engine = RolloutEngine(folder, ModelConfig(), config, "cpu", 400, [63], None)
        counts = []
        for begin in range(3):
            if begin == 2:
                await engine.serve(version=1)
            counts.append(await cached_tokens(engine))
        asked = [prompt, Prompt(id=1, tokens=(5,) * 500), Prompt(id=2, tokens=(63_000,)), Prompt(id=3, tokens=())]
        bad = [answer async for answer in engine.generate(asked, range(4))]
        engine.deterministic = True
        once = await log_probabilities(engine)
        for _ in range(2):
            counts.append(await cached_tokens(engine))
        twice = [once, await log_probabilities(engine)]
        threads = await engine._call(torch.get_num_threads)
        scheduler = engine.llm.vllm_config.scheduler_config
        limits = scheduler.max_num_seqs, scheduler.max_num_batched_tokens
        engine.stop()
        return Seen(
            cached=counts,
            bad=sorted(bad, key=lambda answer: answer.position),
            twice=twice,
            threads=threads,
            limits=limits,
        )

    return asyncio.run(run())


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> Seen:
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
        return process.submit(see, tmp_path_factory.mktemp("model")).result(timeout=300)


def test_samples_of_a_prompt_share_its_prefix(seen: Seen) -> None:
    """Whole blocks of the prompt, 256 of its 300 tokens with blocks of 128, by all samples but the first."""
    first, second, *_ = seen.cached
    assert first >= (SAMPLES - 1) * 128
    assert second > first


def test_nothing_computed_with_older_weights_is_reused(seen: Seen) -> None:
    first, _, after_new_weights, *_ = seen.cached
    assert after_new_weights == first


def test_a_prompt_that_the_engine_does_not_take_costs_that_prompt_alone(seen: Seen) -> None:
    """Too long, a token that is not in the vocabulary, and no token at all."""
    good, *bad = seen.bad
    assert (good.fault, good.rollout.finish_reason, len(good.rollout.tokens)) == ("", FinishReason.LENGTH, 4)
    for answer in bad:
        assert answer.fault
        assert answer.rollout.finish_reason == FinishReason.SET_ASIDE
        assert answer.rollout.prompt.id == answer.position
        assert not answer.rollout.mask.any()
    assert "maximum" in bad[0].fault or "long" in bad[0].fault
    assert RolloutBlock.pack([answer.rollout for answer in seen.bad]).set_aside.tolist() == [False, True, True, True]


def test_the_engine_computes_on_all_cores_whatever_its_process_did_before(seen: Seen) -> None:
    assert seen.threads == len(os.sched_getaffinity(0))


def test_an_engine_has_the_limits_of_offline_use(seen: Seen) -> None:
    """Of vLLM's class ``LLM`` on a CPU, and not the 128 sequences and 2,048 tokens of an engine in an unknown use."""
    assert seen.limits == (256, 4096)


def test_a_deterministic_engine_gives_the_same_answers_to_the_bit(seen: Seen) -> None:
    once, again = seen.twice
    assert once == again
    *_, first, second = seen.cached
    assert first == second == seen.cached[0], "nothing is left in the cache by an earlier call"
    assert len(once) == 24
