"""What every role has in common: a network under DeepSpeed on one rank, and this rank's part of the work."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Generic, TypeVar

import numpy as np
from torch import Tensor, nn

from rlhf.batching import MicroBatches, plan
from rlhf.config.schema import OptimizerConfig, Recipe, RoleConfig
from rlhf.models.packed_row import PackedRow
from rlhf.models.policy import PolicyNet
from rlhf.roles.forward import Share, forward_share
from rlhf.types import RolloutBlock, Sequences
from rlhf.zero import checkpoint
from rlhf.zero.checkpoint import Files
from rlhf.zero.engine import ZeroEngine, building
from rlhf.zero.process_group import Rank, join, seed_process

Network = TypeVar("Network", bound=nn.Module)


class Role(Generic[Network]):
    """One model on one rank. Every method is called on all ranks of the group, with the same arguments."""

    def __init__(
        self,
        recipe: Recipe,
        config: RoleConfig,
        rank: Rank,
        build: Callable[[], Network],
        optimizer: OptimizerConfig | None = None,
        total_updates: int = 0,
    ) -> None:
        self.recipe, self.config, self.rank = recipe, config, rank
        self.place = join(rank)
        seed_process(recipe.seed, rank.rank)
        keep = building(config, recipe.model.dtype, rank)
        self.network = build()
        self.engine = ZeroEngine(self.network, config, recipe.model.dtype, rank, self.place, optimizer, total_updates)
        del keep

    def micro_batches(self, samples: Sequence[int], lengths: Sequence[int] | np.ndarray) -> MicroBatches:
        """This rank's micro-batches of the chosen samples, as many as on every other rank; ``lengths`` of all."""
        return plan(samples, lengths, self.rank.world, self.config.micro_batch_tokens)[self.rank.rank]

    def share(self, sequences: Sequences, compute: Callable[[PackedRow], Tensor]) -> Share:
        """What ``compute`` makes of this rank's part of the sequences."""
        micro_batches = self.micro_batches(range(len(sequences)), sequences.lengths)
        return forward_share(sequences, micro_batches, self.place, compute)

    def snapshot(self) -> Files:
        """This rank's own files of all that training goes on from. Only of a role that trains."""
        return checkpoint.snapshot(self.engine)

    def restore(self, *shards: Files) -> None:
        """Go on from the snapshots of all ranks."""
        checkpoint.restore(self.engine, shards)

    def load(self, folder: str) -> None:
        """Go on from a folder that holds the files of all ranks that took the snapshot."""
        checkpoint.load(self.engine, Path(folder))


class LanguageRole(Role[PolicyNet]):
    """A role that tells how likely rollouts are: the policy and its reference."""

    def logprobs(self, block: RolloutBlock) -> Share:
        """This rank's share of the response tokens' log-probabilities, at the sampling temperature, in nats."""
        temperature = self.recipe.rollout.temperature
        return self.share(block.sequences, lambda row: self.engine.forward(row, temperature)[0])
