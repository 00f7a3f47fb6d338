"""Rules of a recipe's adapters: settings that do not work with those of ``model.lora``."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rlhf.config.schema import Recipe
from rlhf.errors import UserError


def check_lora(recipe: Recipe, stages: Sequence[str]) -> Iterator[UserError]:
    """Yield one error for each setting of a stage that does not work with the recipe's adapters."""
    ranks = recipe.placement.reward.tensor_parallel
    if "reward" in stages and recipe.model.reward_lora is not None and ranks > 1:
        yield UserError(
            f"placement.reward.tensor_parallel = {ranks} and model.lora.quantization = nf4",
            "adapters lie around the layers whose matrices would be split",
            "placement.reward.tensor_parallel=1 or model.lora.quantization=null",
        )
