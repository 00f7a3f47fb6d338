"""The limits of vLLM's batches: the recipe's, or vLLM's own defaults, computed here without vLLM and without a GPU."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from rlhf.config.schema import Recipe, RolloutConfig
from rlhf.errors import UserError

GIB = 2**30
LARGE, LARGEST = 70 * GIB, 160 * GIB
"""Memory of a GPU from which vLLM's defaults are larger."""
LEAST_TOKENS = 4096
"""vLLM's smallest default of ``max_num_batched_tokens`` for offline use, that of a CPU."""


@dataclass(frozen=True, kw_only=True)
class EngineLimits:
    """Most sequences, and most tokens, that an engine computes at a time."""

    sequences: int
    tokens: int


def gpu_limits(config: RolloutConfig, longest: int, gpu: str, memory: int) -> EngineLimits:
    """The limits of an engine on GPUs; what the recipe leaves open has vLLM's default for offline use.

    Source: ``EngineArgs.get_batch_defaults`` and ``_set_default_max_num_seqs_and_batched_tokens_args`` of vLLM.

    Args:
        longest: longest sequence of prompt and response, in tokens.
        gpu: name of the GPU's type, such as ``h100-80``.
        memory: memory of one GPU, in bytes.
    """
    is_large = memory >= LARGEST or (memory >= LARGE and "a100" not in gpu.lower())
    sequences = config.max_num_seqs or (1024 if is_large else 256)
    tokens = config.max_num_batched_tokens or min(sequences * longest, 16_384 if is_large else 8_192)
    return EngineLimits(sequences=config.max_num_seqs or min(sequences, tokens), tokens=tokens)


def check_limits(recipe: Recipe, has_gpus: bool) -> Iterator[UserError]:
    """Yield one error for each limit that vLLM would refuse when an engine starts."""
    config = recipe.rollout
    sequences, tokens = config.max_num_seqs, config.max_num_batched_tokens
    longest = recipe.data.max_prompt_length + config.max_response_length
    if sequences is not None and sequences > (tokens or LEAST_TOKENS):
        given = f"rollout.max_num_batched_tokens = {tokens}" if tokens else f"vLLM's default of {LEAST_TOKENS:,} tokens"
        yield UserError(
            f"rollout.max_num_seqs = {sequences} exceeds {given}",
            "each sequence that is generated takes one token of a batch",
            f"rollout.max_num_batched_tokens={sequences}, or fewer sequences",
        )
    if tokens is not None and tokens < longest and not has_gpus:
        yield UserError(
            f"rollout.max_num_batched_tokens = {tokens} is less than the longest sequence, {longest} tokens",
            "on a CPU vLLM computes a prompt in one batch, and refuses longer sequences",
            f"rollout.max_num_batched_tokens={longest}, or null for vLLM's default",
        )
