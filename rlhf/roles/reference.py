"""One rank of the reference: the frozen policy as it was before PPO."""

from __future__ import annotations

from rlhf.config.schema import Recipe
from rlhf.models.load import load_causal
from rlhf.models.policy import PolicyNet
from rlhf.roles.role import LanguageRole
from rlhf.zero.rank import Rank


class ReferenceRole(LanguageRole):
    """The reference on one rank: log π_ref."""

    def __init__(self, recipe: Recipe, folder: str, rank: Rank) -> None:
        super().__init__(recipe, recipe.placement.reference, rank, lambda: PolicyNet(load_causal(folder, recipe.model)))
