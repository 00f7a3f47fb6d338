"""Demonstrations as packed sequences with a mask of the tokens that are trained on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from rlhf.roles.forward import token_index
from rlhf.types import Bool, Example, Sequences


@dataclass(frozen=True, kw_only=True)
class ExampleData:
    """Packed demonstrations. Shapes: ``sequences`` B samples, R response tokens; mask (R,) true where trained on."""

    sequences: Sequences
    mask: Bool

    @classmethod
    def pack(cls, examples: Sequence[Example]) -> ExampleData:
        """Pack demonstrations, in order."""
        masks = [np.zeros(0, dtype=np.bool_), *(example.mask for example in examples)]
        return cls(
            sequences=Sequences.pack((example.prompt, example.response) for example in examples),
            mask=np.concatenate(masks),
        )

    def __len__(self) -> int:
        return len(self.sequences)

    def mask_of(self, samples: Sequence[int]) -> Bool:
        """Mask of the given samples' response tokens, in the order of the samples."""
        return self.mask[token_index(self.sequences, samples)]
