"""One rank of a frozen reward model."""

from __future__ import annotations

from collections.abc import Callable

from rlhf.config.schema import Recipe
from rlhf.models.classifier import inspect_classifier, label_index, load_own
from rlhf.models.load import reward_shift
from rlhf.models.scalar import ScalarNet
from rlhf.roles.block_result import BlockResult
from rlhf.roles.scalar_role import ScalarRole
from rlhf.types import RolloutBlock, Sequences
from rlhf.zero.process_group import Rank

Encode = Callable[[RolloutBlock], Sequences]
"""Converts a block to the tokens that a reward model reads."""


class RewardRole(ScalarRole):
    """A frozen reward model on one rank, of any architecture for which transformers has a sequence classifier.

    The score is read where the classifier reads it: in a decoder at the last token that is not the padding token, in an
    encoder from its pooler.
    """

    encode: Encode | None = None
    """Converts a block to the model's tokens; None if these are the policy's."""

    def __init__(self, recipe: Recipe, folder: str, rank: Rank, label: int | str | None = None) -> None:
        """Load the model, and probe how its score is computed.

        Args:
            label: selects the logit that is the score, by index or name; None if the model has one label.

        Raises:
            UserError: a weight is missing or would not be loaded, or the model has no such label.
        """
        found = inspect_classifier(folder, recipe.model, own=True)
        found.require_whole("rewards.<name>.model")
        index = label_index(found, label, "rewards.<name>.label")

        def build() -> ScalarNet:
            return ScalarNet(load_own(found, recipe.model), index)

        super().__init__(recipe, recipe.placement.reward, rank, build)
        self.shift = reward_shift(self.network.classifier)
        print(f"reward model {folder}: read {self.choose_reader()}", flush=True)

    def scores(self, block: RolloutBlock) -> BlockResult:
        """This rank's part of the rewards, one per sample, plus the shift that the reward stage saved with the model.

        The shift makes demonstrations score 0 on average; it is 0 for models trained elsewhere.
        """
        sequences = self.encode(block) if self.encode else block.sequences
        return self.compute_unit(sequences, lambda row: self.engine.forward(row) + self.shift)
