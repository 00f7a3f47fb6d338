"""Rules of a recipe's adapters: settings that do not work with those of ``model.lora``."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rlhf.config.schema import LoRAConfig, Recipe
from rlhf.errors import UserError

LARGEST_RANK = 512
"""Largest rank of an adapter in vLLM: the last of ``RANKS`` in ``rlhf/weights/adapter.py``."""


def check_lora(recipe: Recipe, stages: Sequence[str]) -> Iterator[UserError]:
    """Yield one error for each setting of a stage that does not work with the recipe's adapters."""
    if "ppo" in stages and recipe.model.engine_lora is not None:
        yield from _in_engines(recipe, recipe.model.engine_lora)
    ranks = recipe.placement.reward.tensor_parallel
    if "reward" in stages and recipe.model.reward_lora is not None and ranks > 1:
        yield UserError(
            f"placement.reward.tensor_parallel = {ranks} and model.lora.quantization = nf4",
            "adapters lie around the layers whose matrices would be split",
            "placement.reward.tensor_parallel=1 or model.lora.quantization=null",
        )


def _in_engines(recipe: Recipe, lora: LoRAConfig) -> Iterator[UserError]:
    """Errors of adapters that engines load."""
    what, fix = "model.lora.publish = adapter", "model.lora.publish=merged"
    if lora.rank > LARGEST_RANK:
        why = f"vLLM serves adapters up to rank {LARGEST_RANK}"
        yield UserError(f"{what} and model.lora.rank = {lora.rank}", why, f"{fix}, or a lower rank")
    if recipe.rollout.tensor_parallel > 1:
        yield UserError(
            f"{what} and rollout.tensor_parallel = {recipe.rollout.tensor_parallel}",
            "a shard holds parts of B and copies of A, from which the adapter cannot be proven",
            f"{fix}, or rollout.tensor_parallel=1 with more rollout.engines",
        )
