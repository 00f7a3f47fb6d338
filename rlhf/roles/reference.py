"""One rank of the reference: the frozen policy as it was before PPO."""

from __future__ import annotations

from rlhf.config.schema import Recipe
from rlhf.models.load import load_causal
from rlhf.models.policy import PolicyNet
from rlhf.roles.forward import Share, forward_share
from rlhf.types import RolloutBlock
from rlhf.zero.engine import ZeroEngine, building
from rlhf.zero.process_group import Rank, join


class ReferenceRole:
    """The reference on one rank."""

    def __init__(self, recipe: Recipe, folder: str, rank: Rank) -> None:
        self.recipe, self.rank = recipe, rank
        self.place = join(rank)
        role = recipe.placement.reference
        keep = building(role, recipe.model.dtype, rank)
        self.engine = ZeroEngine(
            PolicyNet(load_causal(folder, recipe.model)), role, recipe.model.dtype, rank, self.place
        )
        del keep

    def logprobs(self, block: RolloutBlock) -> Share:
        """This rank's share of log π_ref of the response tokens, at the sampling temperature, in nats."""
        budget, temperature = self.recipe.placement.reference.micro_batch_tokens, self.recipe.rollout.temperature
        return forward_share(
            block.sequences,
            self.rank.rank,
            self.rank.world,
            budget,
            self.place,
            lambda row: self.engine.forward(row, temperature)[0],
        )
