"""Packed comparisons, two sequences each: pair i is samples 2i (chosen) and 2i + 1 (rejected)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from rlhf.types import Float32, Int64, Pair, Sequences


@dataclass(frozen=True, kw_only=True)
class PairData:
    """K packed pairs. Shapes: ``sequences`` 2K samples, chosen and rejected alternating; margins, prompt_ids (K,)."""

    sequences: Sequences
    margins: Float32
    prompt_ids: Int64
    """Equal for all pairs of one prompt."""

    @classmethod
    def pack(cls, pairs: Sequence[Pair]) -> PairData:
        """Pack pairs, in order."""
        samples = [(pair.prompt, answer) for pair in pairs for answer in (pair.chosen, pair.rejected)]
        margins = np.array([pair.margin for pair in pairs], dtype=np.float32)
        return cls(sequences=Sequences.pack(samples), margins=margins, prompt_ids=prompt_ids(pairs))


def prompt_ids(pairs: Sequence[Pair]) -> Int64:
    """(K,) prompt id of each pair."""
    return np.array([pair.prompt_id for pair in pairs], dtype=np.int64)
