"""Several samples of a prompt share what the engine computed for it, until new weights arrive."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import pytest

PROMPT, SAMPLES = 300, 4


def shared_tokens(folder: Path) -> list[int]:
    """Cached prompt tokens after four samples of one prompt, after four more, and after new weights and four more.

    In a process of its own: vLLM reads its environment when it is imported.
    """
    from rlhf.device import engine_environment

    os.environ.update(engine_environment("cpu", 1.0, None))
    from transformers import LlamaConfig, LlamaForCausalLM

    from rlhf.config.schema import ModelConfig, RolloutConfig
    from rlhf.generation.engine import RolloutEngine
    from rlhf.types import Prompt

    sizes = {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    LlamaForCausalLM(LlamaConfig(vocab_size=64, max_position_embeddings=512, **sizes)).save_pretrained(folder)
    prompt = Prompt(id=0, tokens=tuple(i % 60 for i in range(PROMPT)))

    async def run() -> list[int]:
        config = RolloutConfig(max_response_length=4, enforce_eager=True)
        engine = RolloutEngine(folder, ModelConfig(), config, "cpu", 400, [63], None)
        counts = []
        for begin in range(3):
            if begin == 2:
                await engine.serve(version=1)
            before = engine.cached_tokens
            assert len([a async for a in engine.generate([prompt] * SAMPLES, range(SAMPLES))]) == SAMPLES
            counts.append(engine.cached_tokens - before)
        assert engine.prompt_tokens == 3 * SAMPLES * PROMPT
        engine.stop()
        return counts

    return asyncio.run(run())


@pytest.fixture(scope="module")
def counts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[int]]:
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
        yield process.submit(shared_tokens, tmp_path_factory.mktemp("model")).result(timeout=300)


def test_samples_of_a_prompt_share_its_prefix(counts: list[int]) -> None:
    """Whole blocks of the prompt, 256 of its 300 tokens with blocks of 128, by all samples but the first."""
    first, second, _ = counts
    assert first >= (SAMPLES - 1) * 128
    assert second > first


def test_nothing_computed_with_older_weights_is_reused(counts: list[int]) -> None:
    first, _, after_new_weights = counts
    assert after_new_weights == first
