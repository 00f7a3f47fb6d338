"""Scoring a block: each rank computes its share, and the shares are put together again."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from torch import Tensor

from rlhf.batching import MicroBatches
from rlhf.models.packed_row import PackedRow, pack_row
from rlhf.types import Float32, Int64, Sequences


@dataclass(frozen=True, kw_only=True)
class Share:
    """What one rank computed of a block.

    ``values`` of ``samples`` (b,), one number a sample or one a response token, packed.
    """

    samples: Int64
    values: Float32

    @classmethod
    def nothing(cls) -> Self:
        """The share of a rank that leaves the telling to another."""
        return cls(samples=np.zeros(0, dtype=np.int64), values=np.zeros(0, dtype=np.float32))


def forward_share(
    sequences: Sequences, micro_batches: MicroBatches, device: torch.device, compute: Callable[[PackedRow], Tensor]
) -> Share:
    """Run ``compute`` on one rank's micro-batches, each a packed row."""
    outputs = [compute(pack_row(sequences, samples, device)).float().cpu().numpy() for samples in micro_batches]
    samples = np.array([i for micro_batch in micro_batches for i in micro_batch], dtype=np.int64)
    return Share(samples=samples, values=np.concatenate(outputs).astype(np.float32))


def join_samples(shares: Sequence[Share], count: int) -> Float32:
    """(B,) one number a sample, in the block's order."""
    joined = np.full(count, np.nan, dtype=np.float32)
    for share in shares:
        joined[share.samples] = share.values
    return joined


def join_tokens(shares: Sequence[Share], sequences: Sequences) -> Float32:
    """(R,) one number a response token, in the block's order."""
    joined = np.full(int(sequences.response_lengths.sum()), np.nan, dtype=np.float32)
    for share in shares:
        joined[token_index(sequences, share.samples)] = share.values
    return joined


def token_index(sequences: Sequences, samples: Sequence[int] | Int64) -> Int64:
    """Where the response tokens of the chosen samples are in a packed (R,) array, in the order of the samples."""
    samples = np.asarray(samples, dtype=np.int64)
    lengths = sequences.response_lengths[samples].astype(np.int64)
    begins = sequences.response_starts[samples]
    within = np.arange(int(lengths.sum())) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    return np.repeat(begins, lengths) + within
