"""Demonstrations as packed sequences, and which of their tokens are trained on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from rlhf.roles.forward import token_index
from rlhf.types import Bool, Example, Sequences


@dataclass(frozen=True, kw_only=True)
class ExampleData:
    """Demonstrations, packed. Shapes: ``sequences`` B samples with R response tokens; mask (R,) those trained on."""

    sequences: Sequences
    mask: Bool

    @classmethod
    def pack(cls, examples: Sequence[Example]) -> ExampleData:
        """Pack demonstrations in their order."""
        masks = [np.zeros(0, dtype=np.bool_), *(example.mask for example in examples)]
        return cls(
            sequences=Sequences.pack((example.prompt, example.response) for example in examples),
            mask=np.concatenate(masks),
        )

    def __len__(self) -> int:
        return len(self.sequences)

    def mask_of(self, samples: Sequence[int]) -> Bool:
        """The mask of the chosen samples' response tokens, in the order of the samples."""
        return self.mask[token_index(self.sequences, samples)]
