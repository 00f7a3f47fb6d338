"""What the examination of a loaded model found: ``rlhf/models/examine.py`` makes it, and the controller reads it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class Examination:
    """What was found. Distances are relative; None: not applicable to this model."""

    form: Literal["packed", "padded"]
    """How the model's sequences lie from now on."""
    tokens: int
    """Of the row that was tried."""
    padded: float | None = None
    """From the model's own, a row a sequence."""
    packed: float | None = None
    """The same, all in one row."""
    neighbours: float | None = None
    """Largest change of a token when its sequence's neighbours in the row change."""
    joined: float | None = None
    """For comparison: what changes when the sequences do see each other."""
    logprob_gap: float | None = None
    """Mean distance from log-probabilities of the model's own logits, in nats."""
    unused: tuple[str, ...] = ()
    """Tensors of the model's folder that the network has no use for."""
    notes: tuple[str, ...] = ()
    """What the user should know."""

    def line(self) -> str:
        """The findings in one line."""
        rows = "packed rows" if self.form == "packed" else "a row a sequence"
        off = self.packed if self.form == "packed" else self.padded
        if off is None:
            return rows
        gap = "" if self.logprob_gap is None else f", log-probabilities by {self.logprob_gap:.1e} nats"
        return f"{rows}; off the model's own forward pass by {off:.1e}{gap}"
