"""One rank of supervised fine-tuning."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from rlhf.config.schema import Recipe
from rlhf.models.load import load_policy
from rlhf.models.packed_row import pack_row
from rlhf.models.policy import PolicyNet
from rlhf.roles.examples import ExampleData
from rlhf.roles.forward import BlockResult
from rlhf.roles.role import Role
from rlhf.roles.save import save_model
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

    def use(self, train: ExampleData, held_out: ExampleData) -> None:
        """Set the data; later calls identify demonstrations by index."""
        self.train, self.held_out = train, held_out

    def update(self, chosen: Sequence[int]) -> dict[str, float]:
        """Take one optimizer step on the given demonstrations; returns metrics over all ranks."""
        sequences = self.train.sequences
        micro_batches = self.micro_batches(chosen, sequences.lengths)
        count = int(self.train.mask_of(chosen).sum())
        total = torch.zeros(1, dtype=torch.float64)

        def loss(samples: list[int]) -> Tensor:
            mask = torch.from_numpy(self.train.mask_of(samples)).to(self.device)
            (logprobs,) = self.engine.engine(pack_row(sequences, samples, self.device), 1.0)
            logprobs = logprobs.where(mask, 0.0)
            total.sub_(logprobs.detach().sum().double().cpu())
            return -logprobs.sum()

        begun = time.perf_counter()
        norm = self.engine.update(micro_batches, loss, count)
        rates = self.utilisation(sequences.lengths[np.asarray(chosen)], count, time.perf_counter() - begun)
        mean = float(self.engine.all_reduce(total)) / count
        return {
            "train/loss": mean,
            "train/grad_norm": norm,
            "lr": self.engine.learning_rate,
            "train/tokens": float(count),
            **rates,
        }

    def held_out_logprobs(self) -> BlockResult:
        """This rank's share of the log-probabilities of held-out response tokens, in nats; the mask is not applied."""
        return self.compute_share(self.held_out.sequences, lambda row: self.engine.forward(row, 1.0)[0])

    def save(self, folder: Path) -> None:
        """Write the model in Hugging Face format (collective; rank 0 writes)."""
        save_model(self.engine, self.network.lm, folder)
