"""The limits of an engine's batches: vLLM's own defaults by GPU, and limits that vLLM would refuse."""

from __future__ import annotations

import pytest
from vllm.engine.arg_utils import EngineArgs
from vllm.platforms import current_platform
from vllm.usage.usage_lib import UsageContext

from rlhf.config.schema import DataConfig, Recipe, RolloutConfig
from rlhf.generation.limits import LEAST_TOKENS, EngineLimits, check_limits, gpu_limits
from rlhf.gpus import GPUS

LONG = 10**6


@pytest.mark.parametrize("gpu", GPUS)
def test_defaults_are_those_of_vllm(gpu: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Asks the installed vLLM, which believes that it runs on this GPU."""
    kind = type(current_platform)
    monkeypatch.setattr(kind, "get_device_total_memory", lambda *_: GPUS[gpu].memory, raising=False)
    monkeypatch.setattr(kind, "get_device_name", lambda *_: f"NVIDIA {gpu}".upper(), raising=False)
    monkeypatch.setattr(kind, "is_cpu", lambda _: False)
    tokens, sequences = EngineArgs.get_batch_defaults(1)
    offline = UsageContext.LLM_CLASS
    found = gpu_limits(RolloutConfig(), LONG, gpu, GPUS[gpu].memory)
    assert (found.sequences, found.tokens) == (sequences[offline], tokens[offline])


def test_the_least_default_is_that_of_a_cpu() -> None:
    assert current_platform.is_cpu()
    assert EngineArgs.get_batch_defaults(1)[0][UsageContext.LLM_CLASS] == LEAST_TOKENS


@pytest.mark.parametrize(
    ("chosen", "sequences", "tokens"),
    [
        ({}, 1024, 16_384),
        ({"max_num_seqs": 100}, 100, 5_000),  # a hundred sequences of 50 tokens need no more
        ({"max_num_batched_tokens": 512}, 512, 512),
        ({"max_num_seqs": 64, "max_num_batched_tokens": 65_536}, 64, 65_536),
    ],
)
def test_limits_of_an_h100_by_hand(chosen: dict[str, int], sequences: int, tokens: int) -> None:
    found = gpu_limits(RolloutConfig(**chosen), 50, "h100-80", GPUS["h100-80"].memory)
    assert found == EngineLimits(sequences=sequences, tokens=tokens)


@pytest.mark.parametrize(
    ("chosen", "has_gpus", "keys"),
    [
        ({"max_num_seqs": 64, "max_num_batched_tokens": 300}, False, []),
        ({"max_num_seqs": 301, "max_num_batched_tokens": 300}, True, ["rollout.max_num_seqs = 301"]),
        ({"max_num_seqs": 4097}, True, ["rollout.max_num_seqs = 4097"]),
        ({"max_num_batched_tokens": 299}, False, ["rollout.max_num_batched_tokens = 299"]),
        ({"max_num_batched_tokens": 299}, True, []),  # chunked prefill splits prompts
    ],
)
def test_limits_that_vllm_refuses(chosen: dict[str, int], has_gpus: bool, keys: list[str]) -> None:
    """Sequences of 100 + 200 tokens."""
    rollout = RolloutConfig(max_response_length=200, **chosen)
    recipe = Recipe(name="a", data=DataConfig(max_prompt_length=100), rollout=rollout)
    found = [error.what for error in check_limits(recipe, has_gpus)]
    assert [what[: len(key)] for what, key in zip(found, keys, strict=True)] == keys
