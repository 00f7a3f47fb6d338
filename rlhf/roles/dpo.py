"""One rank of direct preference optimisation.

Each pair is packed as two sequences: pair i is samples 2i (chosen) and 2i + 1 (rejected). The reference is the policy
before its first update; its log-probabilities are computed once, so that no second model is needed.

Shapes: K pairs, 2K samples, chosen and rejected alternating; R response tokens of all samples, packed.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from rlhf.algorithms.canaries import Limits, check
from rlhf.algorithms.losses import DPOLoss
from rlhf.algorithms.pair_losses import comparison_loss
from rlhf.algorithms.rewards import sample_of_token
from rlhf.config.schema import Recipe
from rlhf.device import copy_to_device
from rlhf.models.load import load_policy
from rlhf.models.packed_row import pack_row
from rlhf.models.policy import PolicyNet
from rlhf.roles.block_result import BlockResult
from rlhf.roles.role import Role
from rlhf.types import Float32, Int64, Sequences
from rlhf.zero.finite import require_finite
from rlhf.zero.process_group import Rank

TEMPERATURE = 1.0
"""The responses come from data, not from sampling: log-probabilities use temperature 1."""
MEANS = ("train/loss", "rewards/chosen", "rewards/rejected", "rewards/accuracies", "logps/chosen", "logps/rejected")
"""Metrics that an update averages over its pairs; ``_stack_sums`` returns their sums in this order."""


class DPORole(Role[PolicyNet]):
    """A language model trained on comparisons with the loss ``dpo.loss``, averaged over pairs."""

    def __init__(self, recipe: Recipe, folder: str, total_updates: int, rank: Rank) -> None:
        super().__init__(
            recipe,
            recipe.placement.policy,
            rank,
            lambda: PolicyNet(load_policy(folder, recipe.model, recipe.seed)),
            recipe.dpo.optimizer,
            total_updates,
        )

    def logprobs(self, sequences: Sequences) -> BlockResult:
        """This rank's part of the response tokens' log-probabilities, in nats."""
        return self.compute_part(sequences, lambda row: self.engine.forward(row, TEMPERATURE)[0])

    def set_data(self, train: Sequences, reference: Float32) -> None:
        """Set the data; later calls identify pairs by index.

        Args:
            train: 2K samples.
            reference: (2K,) log-probabilities of the whole responses before the first update; 0 if the loss has no
                reference.
        """
        require_finite("logprobs of the reference", torch.from_numpy(reference))
        self.train, self.reference = train, reference

    def update(self, indices: Sequence[int]) -> dict[str, float]:
        """Take one optimizer step on the given pairs; returns metrics over all ranks.

        Raises:
            CanaryError: the policy differs from the reference before the first step.
        """
        lengths = self.train.lengths
        micro_batches = self.micro_batches(indices, self.pair_lengths(lengths))
        sums = torch.zeros(len(MEANS) + 1, dtype=torch.float64, device=self.device)

        config = self.recipe.dpo

        def loss(pairs: list[int]) -> Tensor:
            logprobs, reference = self._response_logprobs(pairs)
            terms = comparison_loss(logprobs, reference, config)
            sums.add_(_stack_sums(terms, logprobs.detach(), reference))
            return terms.loss

        samples = np.array([2 * pair + side for pair in indices for side in (0, 1)])
        predicted = int(self.train.response_lengths[samples].sum())
        metrics = self.train_step(micro_batches, loss, len(indices), lengths[samples], predicted)
        *totals, distance = self.engine.all_reduce(sums).tolist()
        self.check_start(samples, distance)
        means = {name: total / len(indices) for name, total in zip(MEANS, totals, strict=True)}
        return {**means, "rewards/margins": means["rewards/chosen"] - means["rewards/rejected"], **metrics}

    def _response_logprobs(self, pairs: list[int]) -> tuple[Tensor, Tensor]:
        """(2, K) log-probabilities of whole responses under policy and reference; row 0 chosen, row 1 rejected.

        Without a reference they are means over tokens.
        """
        samples = [sample for pair in pairs for sample in (2 * pair, 2 * pair + 1)]
        logprobs, reference = self.answer_logprobs(samples)
        if not self.recipe.dpo.has_reference:
            (lengths,) = copy_to_device([self.train.response_lengths[samples]], self.device)
            logprobs = logprobs / lengths
        return logprobs.view(-1, 2).T, reference.view(-1, 2).T

    def answer_logprobs(self, samples: list[int]) -> tuple[Tensor, Tensor]:
        """(n,) log-probabilities of the samples' whole responses under policy, with gradient, and reference."""
        (tokens,) = self.engine.engine(pack_row(self.train, samples, self.device), TEMPERATURE)
        self.engine.finite.watch("logprobs", tokens)
        (owner,) = copy_to_device([sample_of_token(self.train.response_lengths[samples])], self.device)
        (reference,) = copy_to_device([self.reference[samples]], self.device)
        return tokens.new_zeros(len(samples)).index_add(0, owner, tokens), reference

    def check_start(self, samples: Int64, distance: float) -> None:
        """At the first update, check that policy and reference agree before it.

        Args:
            samples: those of the update.
            distance: Σ |log π − log π_ref| of these, before the update.
        """
        if self.engine.updates > 1 or not self.recipe.dpo.has_reference:
            return
        tokens = int(self.train.response_lengths[samples].sum())
        limits = Limits.of(self.recipe.canaries, self.recipe.model.dtype)
        check({"objective/logratio_abs_mean": distance / tokens}, 0, limits)


def _stack_sums(terms: DPOLoss, logprobs: Tensor, reference: Tensor) -> Tensor:
    """(7,) sums over a micro-batch's pairs: one for each of ``MEANS``, then Σ |log π − log π_ref|, in nats."""
    distance = (logprobs - reference).abs().sum()
    rewards = (terms.chosen_rewards, terms.rejected_rewards)
    return torch.stack([terms.loss.detach(), *rewards, terms.correct, *logprobs.sum(dim=1), distance])
