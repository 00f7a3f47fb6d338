"""Joins the partial results that ranks compute for a block."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np

from rlhf.types import Float32, Int64, Sequences, packed_index


@dataclass(frozen=True, kw_only=True)
class BlockResult:
    """One rank's partial result for a block.

    Shapes: samples (b,) indices into the block; values, one per sample (b,) or one per response token, packed.
    """

    samples: Int64
    values: Float32

    @classmethod
    def empty(cls) -> Self:
        """Empty result: another rank of the group returns the values."""
        return cls(samples=np.zeros(0, dtype=np.int64), values=np.zeros(0, dtype=np.float32))


def join_samples(parts: Sequence[BlockResult], count: int) -> Float32:
    """Join parts with one number per sample into a (B,) array in the block's order; NaN where no part has one."""
    joined = np.full(count, np.nan, dtype=np.float32)
    for part in parts:
        joined[part.samples] = part.values
    return joined


def join_tokens(parts: Sequence[BlockResult], sequences: Sequences) -> Float32:
    """Join parts with one number per response token into a packed (R,) array; NaN where no part has one."""
    joined = np.full(int(sequences.response_lengths.sum()), np.nan, dtype=np.float32)
    for part in parts:
        joined[token_index(sequences, part.samples)] = part.values
    return joined


def token_index(sequences: Sequences, samples: Sequence[int] | Int64) -> Int64:
    """Indices into a packed (R,) array of the given samples' response tokens, in the order of the samples."""
    samples = np.asarray(samples, dtype=np.int64)
    return packed_index(sequences.response_starts[samples], sequences.response_lengths[samples])
