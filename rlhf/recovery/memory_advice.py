"""Which key of the recipe to change, and to which value, for a role that ran out of memory."""

from __future__ import annotations

from rlhf.config.schema import Recipe
from rlhf.placement.pools import HELD_OUT_SCORER

ENGINE = "rollout engine"
"""Role of the engines' incidents."""
FRACTION_STEP = 0.1
"""How much less of a GPU's memory an engine is advised to use."""
TRAINED = ("policy", "critic", "reward")
"""Roles that some stage trains."""


def advise_on_memory(recipe: Recipe, role: str, on_gpu: bool) -> str:
    """The first change that lets the role need less memory per device, as ``key=value`` with the present value.

    A network first gets smaller micro-batches, which change nothing else, then recomputes activations, then shards more
    of its state, and at last gets more ranks.

    Args:
        role: role of the incident: ``policy``, ``reward helpful`` or ``rollout engine``, for example.
        on_gpu: whether a GPU's memory was short; the host's otherwise.
    """
    if role == ENGINE:
        return _advise_engine(recipe, on_gpu)
    name = "reward" if role == HELD_OUT_SCORER else role.partition(" ")[0]
    config, key = getattr(recipe.placement, name), f"placement.{name}"
    smaller = max(_longest(recipe), config.micro_batch_tokens // 2)
    if smaller < config.micro_batch_tokens:
        return f"{key}.micro_batch_tokens={smaller} (it is {config.micro_batch_tokens})"
    if name in TRAINED and not recipe.model.gradient_checkpointing:
        return "model.gradient_checkpointing=true (it is false)"
    if config.ranks > 1 and config.zero_stage < 3 and config.tensor_parallel == 1:
        return f"{key}.zero_stage=3 (it is {config.zero_stage})"
    if on_gpu and name in TRAINED and config.zero_stage > 0 and not config.offload:
        return f"{key}.offload=true (it is false)"
    return f"{key}.ranks={2 * config.ranks} (it is {config.ranks}), with zero_stage 3 where it is lower"


def _advise_engine(recipe: Recipe, on_gpu: bool) -> str:
    rollout = recipe.rollout
    if not on_gpu:
        return f"rollout.memory_gib={rollout.memory_gib / 2:g} (it is {rollout.memory_gib:g})"
    if rollout.gpu_memory_fraction > 2 * FRACTION_STEP:
        smaller = round(rollout.gpu_memory_fraction - FRACTION_STEP, 2)
        return f"rollout.gpu_memory_fraction={smaller:g} (it is {rollout.gpu_memory_fraction:g})"
    return f"rollout.tensor_parallel={2 * rollout.tensor_parallel} (it is {rollout.tensor_parallel})"


def _longest(recipe: Recipe) -> int:
    """Longest sequence in tokens, which a micro-batch must hold."""
    return recipe.data.max_prompt_length + max(recipe.data.max_response_length, recipe.rollout.max_response_length)
