"""One rank of reward-model training on single answers that people found good or bad."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from rlhf.algorithms.losses import label_loss
from rlhf.device import copy_to_device
from rlhf.models.packed_row import pack_row
from rlhf.roles.preference import RewardTrainingRole
from rlhf.roles.supervised_data import LabelledData


class LabelledRewardRole(RewardTrainingRole):
    """A reward model trained with −log σ(±r), averaged over answers; see ``label_loss``."""

    def set_labelled(self, train: LabelledData) -> None:
        """Set the data; later calls identify answers by index."""
        self.labelled = train

    def update(self, indices: Sequence[int]) -> dict[str, float]:
        """Take one optimizer step on the given answers; returns metrics over all ranks."""
        sequences = self.labelled.sequences
        sums = torch.zeros(2, dtype=torch.float64, device=self.device)

        def loss(samples: list[int]) -> Tensor:
            rewards = self.engine.engine(pack_row(sequences, samples, self.device))
            (is_good,) = copy_to_device([self.labelled.is_good[samples]], self.device)
            value = label_loss(rewards, is_good)
            sums.add_(torch.stack([value.detach(), ((rewards > 0) == is_good).sum()]))
            return value

        micro_batches = self.micro_batches(indices, sequences.lengths)
        lengths = sequences.lengths[np.asarray(indices)]
        metrics = self.train_step(micro_batches, loss, len(indices), lengths, predicted=0)
        mean_loss, accuracy = (self.engine.all_reduce(sums) / len(indices)).tolist()
        return {"train/loss": mean_loss, "train/accuracy": accuracy, **metrics}
