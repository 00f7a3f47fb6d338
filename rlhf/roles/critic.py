"""One rank of the critic: computes values of rollouts and runs the value update."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from rlhf.algorithms.losses import value_loss
from rlhf.config.schema import Recipe
from rlhf.config.stages import critic_updates
from rlhf.device import copy_to_device, peak_memory_gib
from rlhf.errors import UserError
from rlhf.models.classifier import inspect_classifier
from rlhf.models.load import load_classifier
from rlhf.models.packed_row import pack_row
from rlhf.models.scalar import ScalarNet, init_value_head
from rlhf.roles.block_result import BlockResult, token_index
from rlhf.roles.role import plan_updates
from rlhf.roles.scalar_role import ScalarRole
from rlhf.types import Experience, RolloutBlock
from rlhf.zero.process_group import Rank


class CriticRole(ScalarRole):
    """The critic on one rank: a sequence classifier whose head is initialised to zeros."""

    def __init__(self, recipe: Recipe, folder: str, rank: Rank) -> None:
        """Load the folder's backbone with a new head.

        Raises:
            UserError: the folder's backbone lacks a weight, or its attention is not causal.
        """
        key = "the critic's start" if recipe.ppo.critic_init is None else "ppo.critic_init"
        inspect_classifier(folder, recipe.model, own=False).require_backbone(key)

        def build() -> ScalarNet:
            classifier = load_classifier(folder, recipe.model)
            init_value_head(classifier)
            return ScalarNet(classifier)

        optimizer = recipe.ppo.critic_optimizer
        super().__init__(recipe, recipe.placement.critic, rank, build, optimizer, critic_updates(recipe))
        if not self.is_causal:
            raise UserError(
                f"{key} = {folder} is a {type(self.network.model).__name__}, whose attention is not causal",
                "the value of a token's state must not depend on later tokens",
                "ppo.critic_init=<folder of a causal language model>, the policy's for example",
            )

    def values(self, block: RolloutBlock) -> BlockResult:
        """This rank's part of a unit's V(s_t), the value of the state before each response token."""
        return self.compute_unit(block.sequences, lambda row: self.engine.forward(row, row.predict_at))

    def update(self, experience: Experience, step: int) -> dict[str, float]:
        """Run all epochs, with the policy's minibatches; returns metrics over all ranks.

        ``target_kl`` may end the policy's epochs early, never the critic's.
        """
        plan, skipped = plan_updates(self.recipe, experience, step)
        sums = [self._update_minibatch(experience, indices) for indices in plan]
        self.engine.skip_updates(skipped)
        if not sums:
            return {}
        loss, clipfrac = self.engine.all_reduce(torch.stack(sums)).mean(dim=0).tolist()
        return {
            "loss/value_avg": loss,
            "val/clipfrac_avg": clipfrac,
            "lr_critic": self.engine.learning_rate,
            "memory/critic_gib": peak_memory_gib(self.rank.device),
        }

    def _update_minibatch(self, experience: Experience, indices: Sequence[int]) -> Tensor:
        """Take one optimizer step; returns this rank's part of the means (2,) over tokens: loss, clipped."""
        sequences = experience.rollouts.sequences
        micro_batches = self.micro_batches(indices, sequences.lengths)
        count = int(experience.response_mask[token_index(sequences, indices)].sum())
        sums = torch.zeros(2, dtype=torch.float64, device=self.device)

        def loss(samples: list[int]) -> Tensor:
            index = token_index(sequences, samples)
            kept = experience.response_mask[index]
            row = pack_row(sequences, samples, self.device, kept)
            assert experience.values is not None and experience.returns is not None
            arrays = [array[index][kept] for array in (experience.values, experience.returns)]
            old, target = copy_to_device(arrays, self.device)
            values = self.engine.finite.watch("values", self.engine.engine(row, row.predict_at))
            terms = value_loss(values, old, target, self.recipe.algorithm.value_clip_range)
            total = terms.loss.sum()
            sums.add_(torch.stack([total.detach(), terms.clipped.sum()]))
            return total

        self.engine.update(micro_batches, loss, count)
        return sums / max(1, count)
