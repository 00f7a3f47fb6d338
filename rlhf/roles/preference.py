"""One rank of reward-model training.

Each pair is packed as two sequences: pair i is samples 2i (chosen) and 2i + 1 (rejected).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from rlhf.algorithms.losses import preference_loss
from rlhf.config.schema import Recipe
from rlhf.device import copy_to_device
from rlhf.errors import UserError
from rlhf.models.classifier import head_names, load_own, start_of_reward
from rlhf.models.load import REWARD_SHIFT, load_classifier
from rlhf.models.lora import add_adapters
from rlhf.models.packed_row import pack_row
from rlhf.models.scalar import ScalarNet, init_reward_head
from rlhf.roles.block_result import BlockResult
from rlhf.roles.scalar_role import ScalarRole
from rlhf.roles.supervised_data import PairData
from rlhf.types import Sequences
from rlhf.zero.process_group import Rank


class RewardTrainingRole(ScalarRole):
    """A reward model trained on comparisons with −log σ(r_chosen − r_rejected − margin), averaged over pairs.

    A reward model keeps its head; a causal language model gets a head that is randomly initialised from the seed.
    """

    def __init__(self, recipe: Recipe, folder: str, total_updates: int, rank: Rank) -> None:
        """Load the model, and probe how its score is computed.

        Raises:
            UserError: the folder lacks a weight, or the model does not read its score at the last token.
        """
        start = start_of_reward(folder, recipe.model)

        def build() -> ScalarNet:
            classifier = load_own(start, recipe.model) if start.has_head else load_classifier(folder, recipe.model)
            if not start.has_head:
                init_reward_head(classifier, recipe.seed)
            if recipe.model.reward_lora is not None:
                add_adapters(classifier, recipe.model.reward_lora, recipe.seed, head_names(classifier))
            return ScalarNet(classifier)

        super().__init__(recipe, recipe.placement.reward, rank, build, recipe.reward.optimizer, total_updates)
        head = "existing" if start.has_head else "new"
        print(f"reward model from {folder}: {head} head; read {self.choose_reader()}", flush=True)
        if self.network.reader != "head":
            raise UserError(
                f"reward.init = {folder} is a {start.architecture.__name__}, which does not read its score at the last "
                "token",
                "comparisons are tokenised for a causal model, without the special tokens that an encoder reads",
                "start from a causal language model, or from a reward model that was trained from one",
            )

    def set_data(self, train: PairData) -> None:
        """Set the data; later calls identify pairs by index."""
        self.train = train

    def update(self, indices: Sequence[int]) -> dict[str, float]:
        """Take one optimizer step on the given pairs; returns metrics over all ranks."""
        micro_batches = self.micro_batches(indices, self.pair_lengths(self.train.sequences.lengths))
        sums = torch.zeros(2, dtype=torch.float64, device=self.device)

        def loss(pairs: list[int]) -> Tensor:
            row = pack_row(self.train.sequences, [s for p in pairs for s in (2 * p, 2 * p + 1)], self.device)
            rewards = self.engine.engine(row)
            (margins,) = copy_to_device([self.train.margins[pairs]], self.device)
            value = preference_loss(rewards[0::2], rewards[1::2], margins)
            sums.add_(torch.stack([value.detach(), (rewards[0::2] > rewards[1::2]).sum()]))
            return value

        answers = self.train.sequences.lengths.reshape(-1, 2)[np.asarray(indices)].ravel()
        metrics = self.train_step(micro_batches, loss, len(indices), answers, predicted=0)
        mean_loss, accuracy = (self.engine.all_reduce(sums) / len(indices)).tolist()
        return {"train/loss": mean_loss, "train/accuracy": accuracy, **metrics}

    def rewards(self, sequences: Sequences) -> BlockResult:
        """This rank's part of the raw rewards, one per sample."""
        return self.compute_part(sequences, lambda row: self.engine.forward(row))

    def save_shifted(self, folder: Path, shift: float) -> None:
        """Write the model in Hugging Face format, with the shift that makes demonstrations score 0 on average."""
        self.save(folder, **{REWARD_SHIFT: shift})
