"""One rank of KTO: a language model trained on single answers that people found good or bad.

Each answer is packed as two sequences: answer i is samples 2i, its prompt with its response, and 2i + 1, its prompt
with a response to another prompt, for the estimate of the KL divergence.

Shapes: K answers, 2K samples, true and mismatched alternating.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from rlhf.algorithms.losses import kl_estimate, kto_loss
from rlhf.device import copy_to_device
from rlhf.roles.dpo import DPORole
from rlhf.types import Bool

_SUMS = 6
"""Sums over an update's answers: loss, good rewards, bad rewards, number on the right side, good answers, distance."""


class KTORole(DPORole):
    """A language model trained with the loss of Ethayarajh et al. (2024), averaged over answers; see ``kto_loss``."""

    def set_labels(self, is_good: Bool) -> None:
        """Set the labels (K,) of the answers, after ``set_data``."""
        self.is_good = is_good

    def update(self, indices: Sequence[int]) -> dict[str, float]:
        """Take one optimizer step on the given answers; returns metrics over all ranks.

        Raises:
            CanaryError: the policy differs from the reference before the first step.
        """
        config, lengths = self.recipe.dpo, self.train.lengths
        kl = kl_estimate(self._mismatched_log_ratios(indices), len(indices))
        samples = [2 * i for i in indices]
        sums = torch.zeros(_SUMS, dtype=torch.float64, device=self.device)

        def loss(micro_batch: list[int]) -> Tensor:
            logprobs, reference = self.answer_logprobs(micro_batch)
            (is_good,) = copy_to_device([self.is_good[np.asarray(micro_batch, dtype=np.int64) // 2]], self.device)
            weights = (config.desirable_weight, config.undesirable_weight)
            terms = kto_loss(logprobs, reference, is_good, kl, config.beta, weights)
            good, bad = ((terms.rewards * side).sum() for side in (is_good, ~is_good))
            distance = (logprobs.detach() - reference).abs().sum()
            found = torch.stack([terms.loss.detach(), good, bad, terms.correct, is_good.sum(), distance])
            sums.add_(found)
            return terms.loss

        chosen = np.asarray(samples)
        predicted = int(self.train.response_lengths[chosen].sum())
        micro_batches = self.micro_batches(samples, lengths)
        metrics = self.train_step(micro_batches, loss, len(indices), lengths[chosen], predicted)
        total_loss, good, bad, correct, count, distance = self.engine.all_reduce(sums).tolist()
        self.check_start(chosen, distance)
        return {
            "train/loss": total_loss / len(indices),
            "train/accuracy": correct / len(indices),
            "objective/kl": kl,
            **_mean_rewards(good, bad, int(count), len(indices)),
            **metrics,
        }

    def _mismatched_log_ratios(self, indices: Sequence[int]) -> float:
        """Σ log π − log π_ref of the mismatched responses, over all ranks."""
        total = torch.zeros((), dtype=torch.float64, device=self.device)
        with torch.no_grad():
            for micro_batch in self.micro_batches([2 * i + 1 for i in indices], self.train.lengths):
                logprobs, reference = self.answer_logprobs(micro_batch)
                total += (logprobs - reference).sum()
        return float(self.engine.all_reduce(total))


def _mean_rewards(good: float, bad: float, count: int, size: int) -> dict[str, float]:
    """Mean rewards of the good and of the bad answers, each only if the update has any."""
    means = {"rewards/chosen": good / count} if count else {}
    return means | ({"rewards/rejected": bad / (size - count)} if count < size else {})
