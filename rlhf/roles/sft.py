"""One rank of supervised fine-tuning."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from rlhf.config.schema import Recipe
from rlhf.models.load import load_policy
from rlhf.models.packed_row import pack_row
from rlhf.models.policy import PolicyNet
from rlhf.roles.block_result import BlockResult
from rlhf.roles.role import Role
from rlhf.roles.supervised_data import ExampleData
from rlhf.zero.process_group import Rank


class SFTRole(Role[PolicyNet]):
    """A language model trained on demonstrations.

    The loss is −log p of the response tokens inside the mask, end tokens included, averaged over these tokens.
    """

    def __init__(self, recipe: Recipe, folder: str, total_updates: int, rank: Rank) -> None:
        super().__init__(
            recipe,
            recipe.placement.policy,
            rank,
            lambda: PolicyNet(load_policy(folder, recipe.model, recipe.seed)),
            recipe.sft.optimizer,
            total_updates,
        )

    def set_data(self, train: ExampleData, held_out: ExampleData) -> None:
        """Set the data; later calls identify demonstrations by index."""
        self.train, self.held_out = train, held_out

    def update(self, indices: Sequence[int]) -> dict[str, float]:
        """Take one optimizer step on the given demonstrations; returns metrics over all ranks."""
        sequences = self.train.sequences
        micro_batches = self.micro_batches(indices, sequences.lengths)
        count = int(self.train.mask_of(indices).sum())
        total = torch.zeros((), dtype=torch.float64, device=self.device)

        def loss(samples: list[int]) -> Tensor:
            row = pack_row(sequences, samples, self.device, self.train.mask_of(samples))
            (logprobs,) = self.engine.engine(row, 1.0)
            value = -logprobs.sum()
            total.add_(value.detach())
            return value

        metrics = self.train_step(micro_batches, loss, count, sequences.lengths[np.asarray(indices)], count)
        return {"train/loss": float(self.engine.all_reduce(total)) / count, "train/tokens": float(count), **metrics}

    def held_out_logprobs(self) -> BlockResult:
        """This rank's part of the log-probabilities of held-out response tokens, in nats; the mask is not applied."""
        return self.compute_part(self.held_out.sequences, lambda row: self.engine.forward(row, 1.0)[0])
