"""A frozen reward model's rank."""

from __future__ import annotations

from rlhf.config.schema import Recipe
from rlhf.models.load import load_classifier, reward_shift
from rlhf.models.scalar import ScalarNet
from rlhf.roles.forward import Share
from rlhf.roles.retokenise import Retokeniser
from rlhf.roles.role import Role
from rlhf.types import RolloutBlock
from rlhf.zero.rank import Rank


class RewardRole(Role[ScalarNet]):
    """A frozen reward model on one rank. Its score is read at the last token of the response as it was truncated."""

    def __init__(self, recipe: Recipe, folder: str, rank: Rank, retokenise: Retokeniser | None = None) -> None:
        """Args: retokenise gives a block in the model's own tokens, where these are not the policy's."""
        super().__init__(
            recipe, recipe.placement.reward, rank, lambda: ScalarNet(load_classifier(folder, recipe.model))
        )
        self.shift, self.retokenise = reward_shift(self.network.classifier), retokenise

    def scores(self, block: RolloutBlock) -> Share:
        """This rank's share of the rewards, one a sample; demonstrations score 0 on average."""
        sequences = self.retokenise(block) if self.retokenise else block.sequences
        return self.share(sequences, lambda row: self.engine.forward(row, row.last) + self.shift)
