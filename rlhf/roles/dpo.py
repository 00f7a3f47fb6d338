"""One rank of direct preference optimisation.

Comparisons are packed as two sequences each: pair i is samples 2i (chosen) and 2i + 1 (rejected). The reference is the
policy itself before its first update: its log-probabilities are taken once, so that no second model is needed.

Shapes: K pairs, 2K samples, chosen and rejected in turn; R response tokens of all samples, packed.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from rlhf.algorithms.canaries import Limits, check
from rlhf.algorithms.losses import DPOLoss, dpo_loss
from rlhf.config.schema import DPOConfig, Recipe
from rlhf.models.load import load_policy
from rlhf.models.packed_row import pack_row
from rlhf.models.policy import PolicyNet
from rlhf.roles.forward import Share
from rlhf.roles.role import Role
from rlhf.roles.save import save_model
from rlhf.types import Float32, Sequences
from rlhf.zero.engine import finite
from rlhf.zero.rank import Rank

TEMPERATURE = 1.0
"""The answers were not sampled here: they are judged as the model's plain distribution has them."""
MEANS = ("train/loss", "rewards/chosen", "rewards/rejected", "rewards/accuracies", "logps/chosen", "logps/rejected")
"""What an update reports as a mean over its pairs."""


class DPORole(Role[PolicyNet]):
    """A language model learning comparisons: −log σ(β h), a mean over pairs (Rafailov et al. 2023)."""

    def __init__(self, recipe: Recipe, folder: str, total_updates: int, rank: Rank) -> None:
        super().__init__(
            recipe,
            recipe.placement.policy,
            rank,
            lambda: PolicyNet(load_policy(folder, recipe.model, recipe.seed)),
            recipe.dpo.optimizer,
            total_updates,
        )

    def logprobs(self, sequences: Sequences) -> Share:
        """This rank's share of the response tokens' log-probabilities, in nats."""
        return self.share(sequences, lambda row: self.engine.forward(row, TEMPERATURE)[0])

    def use(self, train: Sequences, reference: Float32) -> None:
        """Take the data; later calls name pairs by their index.

        Args:
            train: 2K samples.
            reference: (2K,) log-probabilities of the whole responses before the first update.
        """
        finite("logprobs of the reference", torch.from_numpy(reference))
        self.train, self.reference, self.is_fresh = train, reference, True

    def update(self, chosen: Sequence[int]) -> dict[str, float]:
        """One optimizer step on the chosen pairs, over all ranks.

        Raises:
            CanaryError: the policy differs from its reference before the first step.
        """
        lengths = self.train.lengths
        micro_batches = self.micro_batches(chosen, self.pair_lengths(lengths))
        sums = torch.zeros(len(MEANS) + 1, dtype=torch.float64)

        def loss(pairs: list[int]) -> Tensor:
            logprobs, reference = self._pairs(pairs)
            terms = _loss(logprobs, reference, self.recipe.dpo)
            sums.add_(_sums(terms, logprobs.detach(), reference).double().cpu())
            return terms.loss

        begun = time.perf_counter()
        norm = self.engine.update(micro_batches, loss, len(chosen))
        samples = np.array([2 * pair + side for pair in chosen for side in (0, 1)])
        predicted = int(self.train.response_lengths[samples].sum())
        rates = self.utilisation(lengths[samples], predicted, time.perf_counter() - begun)
        *totals, moved = self.engine.all_reduce(sums).tolist()
        self._check_start(chosen, moved)
        metrics = {name: total / len(chosen) for name, total in zip(MEANS, totals, strict=True)}
        margin = metrics["rewards/chosen"] - metrics["rewards/rejected"]
        metrics |= {"rewards/margins": margin, "train/grad_norm": norm, "lr": self.engine.learning_rate}
        return metrics | rates

    def _pairs(self, pairs: list[int]) -> tuple[Tensor, Tensor]:
        """(2, K) log-probabilities of whole responses, by the policy and by the reference; row 0 is the chosen ones."""
        samples = [sample for pair in pairs for sample in (2 * pair, 2 * pair + 1)]
        (tokens,) = self.engine.engine(pack_row(self.train, samples, self.place), TEMPERATURE)
        finite("logprobs", tokens)
        lengths = torch.from_numpy(self.train.response_lengths[samples].astype(np.int64)).to(self.place)
        owner = torch.arange(len(samples), device=self.place).repeat_interleave(lengths)
        logprobs = tokens.new_zeros(len(samples)).index_add(0, owner, tokens)
        reference = torch.from_numpy(self.reference[samples]).to(self.place)
        return logprobs.view(-1, 2).T, reference.view(-1, 2).T

    def _check_start(self, chosen: Sequence[int], moved: float) -> None:
        """Before the first step policy and reference are one; ``moved`` is Σ |log π − log π_ref| over responses."""
        if not self.is_fresh:
            return
        self.is_fresh = False
        lengths = self.train.response_lengths
        tokens = int((lengths[0::2] + lengths[1::2])[np.asarray(chosen)].sum())
        limits = Limits.of(self.recipe.canaries, self.recipe.model.dtype)
        check({"objective/logratio_abs_mean": moved / tokens}, 0, limits)

    def save(self, folder: Path) -> None:
        """Write the model in Hugging Face format (rank 0 writes, all gather)."""
        save_model(self.engine, self.network.lm, folder)


def _loss(logprobs: Tensor, reference: Tensor, config: DPOConfig) -> DPOLoss:
    """The loss of pairs, (2, K) each; row 0 the chosen responses."""
    return dpo_loss(logprobs[0], logprobs[1], reference[0], reference[1], config.beta, config.label_smoothing)


def _sums(terms: DPOLoss, logprobs: Tensor, reference: Tensor) -> Tensor:
    """Sums over a micro-batch's pairs: as ``MEANS`` names them, then the distance from the reference."""
    moved = (logprobs - reference).abs().sum()
    rewards = (terms.chosen_rewards, terms.rejected_rewards)
    return torch.stack([terms.loss.detach(), *rewards, terms.correct, *logprobs.sum(dim=1), moved])
