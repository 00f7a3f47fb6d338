"""One rank of the policy: log-probabilities of rollouts, the PPO update, and the publishing of weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from vllm.distributed.weight_transfer.base import VLLMWeightSyncClient

from rlhf.algorithms.losses import policy_loss
from rlhf.batching import minibatches
from rlhf.config.schema import Recipe
from rlhf.config.validate import policy_updates
from rlhf.device import peak_memory_gib
from rlhf.models.load import DTYPES, load_causal
from rlhf.models.packed_row import PackedRow, pack_row
from rlhf.models.policy import PolicyNet
from rlhf.roles.forward import token_index
from rlhf.roles.role import LanguageRole
from rlhf.roles.save import save_model
from rlhf.types import Experience
from rlhf.weights.fingerprint import Fingerprint
from rlhf.weights.sender import make_sender
from rlhf.weights.source import ZeroSource
from rlhf.zero.process_group import Rank


@dataclass(frozen=True, kw_only=True)
class PolicyBatch:
    """What one packed pass of the update needs.

    Shapes: ``row`` R response tokens; old_logprobs, advantages, mask (R,).
    """

    row: PackedRow
    old_logprobs: Tensor
    advantages: Tensor
    mask: Tensor


class PolicyRole(LanguageRole):
    """The policy on one rank: log π_old, and what is trained and published."""

    def __init__(self, recipe: Recipe, folder: str, rank: Rank) -> None:
        super().__init__(
            recipe,
            recipe.placement.policy,
            rank,
            lambda: PolicyNet(load_causal(folder, recipe.model)),
            recipe.ppo.optimizer,
            policy_updates(recipe),
        )
        self.lm = self.network.lm
        self.source = self.make_source()

    def make_source(self) -> ZeroSource:
        """The stream of weights that a publish sends."""
        return ZeroSource(self.engine, self.lm, DTYPES[self.recipe.model.dtype])

    def update(self, experience: Experience, step: int) -> dict[str, float]:
        """PPO's epochs over the batch; returns metrics of all ranks together."""
        algorithm = self.recipe.algorithm
        samples = len(experience.rollouts)
        rows, norms = [], []
        for chosen in minibatches(samples, algorithm.minibatches, algorithm.epochs, [self.recipe.seed, step]):
            sums, norm = self._minibatch(experience, chosen)
            rows.append(sums)
            norms.append(norm)
        totals = self.engine.all_reduce(torch.stack(rows))
        return update_metrics(totals) | {
            "policy/grad_norm": float(np.mean(norms)),
            "lr": self.engine.learning_rate,
            "memory/policy_gib": peak_memory_gib(self.rank.device),
        }

    def _minibatch(self, experience: Experience, chosen: Sequence[int]) -> tuple[Tensor, float]:
        """One optimizer step.

        Returns this rank's sums (7,): loss, ratio, ratio², approxkl, clipped, entropy, tokens.
        """
        sequences = experience.rollouts.sequences
        micro_batches = self.micro_batches(chosen, sequences.lengths)
        count = int(experience.response_mask[token_index(sequences, chosen)].sum())
        sums = torch.zeros(7, dtype=torch.float64)

        def loss(batch: PolicyBatch) -> Tensor:
            logprobs, entropy = self.engine.engine(batch.row, self.recipe.rollout.temperature)
            kept = batch.mask
            terms = policy_loss(
                logprobs[kept], batch.old_logprobs[kept], batch.advantages[kept], self.recipe.algorithm.clip_range
            )
            values = (terms.loss.detach(), terms.ratio, terms.ratio_squared, terms.approxkl, terms.clipped)
            sums.add_(torch.stack([*values, entropy[kept].sum(), kept.sum()]).double().cpu())
            return terms.loss

        norm = self.engine.update([self._batch(experience, samples) for samples in micro_batches], loss, count)
        return sums, norm

    def _batch(self, experience: Experience, samples: Sequence[int]) -> PolicyBatch:
        sequences = experience.rollouts.sequences
        index = token_index(sequences, samples)
        to = lambda array: torch.from_numpy(array[index]).to(self.place)  # noqa: E731
        return PolicyBatch(
            row=pack_row(sequences, samples, self.place),
            old_logprobs=to(experience.old_logprobs),
            advantages=to(experience.advantages),
            mask=to(experience.response_mask),
        )

    def connect(self, client: VLLMWeightSyncClient, backend: str, engine_workers: int, address: str, port: int) -> None:
        """Meet the engines, once."""
        self.sender = make_sender(backend, self.rank.rank, engine_workers, client, self.source, address, port)

    def publish(self) -> Fingerprint:
        """Send the weights to every engine; returns the fingerprint of the trainer's own."""
        self.sender.send_weights()
        return self.source.fingerprint

    def save(self, folder: Path) -> None:
        """Write the model in Hugging Face format (rank 0 writes, all gather)."""
        save_model(self.engine, self.lm, folder)


def update_metrics(totals: Tensor) -> dict[str, float]:
    """Averages over updates and tokens of sums (updates, 7) over ranks; ``first_pass`` is of the first update alone.

    The value of each update is the mean over its tokens; an update's pass happens before its optimizer step.
    """
    tokens = totals[:, 6].clamp(min=1)
    loss, ratio, square, approxkl, clipfrac, entropy = (totals[:, :6] / tokens[:, None]).T
    return {
        "loss/policy_avg": float(loss.mean()),
        "val/ratio": float(ratio.mean()),
        "val/ratio_var": float((square - ratio.square()).clamp(min=0).mean()),
        "policy/approxkl_avg": float(approxkl.mean()),
        "policy/clipfrac_avg": float(clipfrac.mean()),
        "policy/entropy_avg": float(entropy.mean()),
        "first_pass/ratio": float(ratio[0]),
        "first_pass/approxkl": float(approxkl[0]),
        "first_pass/clipfrac": float(clipfrac[0]),
    }
