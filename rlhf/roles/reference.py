"""One rank of the reference model: the policy before PPO, frozen."""

from __future__ import annotations

from rlhf.config.schema import Recipe
from rlhf.models.load import load_causal
from rlhf.models.policy import PolicyNet
from rlhf.roles.role import LanguageRole
from rlhf.zero.process_group import Rank


class ReferenceRole(LanguageRole):
    """The reference model on one rank: computes log π_ref."""

    def __init__(self, recipe: Recipe, folder: str, rank: Rank) -> None:
        super().__init__(recipe, recipe.placement.reference, rank, lambda: PolicyNet(load_causal(folder, recipe.model)))
