"""Result of the examination of a loaded model, which ``examine.py`` makes and the controller reads."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class Examination:
    """Result of an examination. Distances are relative; None: not applicable to this model."""

    form: Literal["packed", "padded"]
    """Form of the model's rows from now on."""
    tokens: int
    """Tokens of the row that was tested."""
    padded: float | None = None
    """Distance of padded rows from the model's own forward pass."""
    packed: float | None = None
    """Distance of one packed row from the model's own forward pass."""
    neighbours: float | None = None
    """Largest change of a token's state when the neighbouring sequences in the row change."""
    joined: float | None = None
    """For comparison: the distance when the sequences do attend to each other."""
    logprob_gap: float | None = None
    """Mean distance from the log-probabilities of the model's own logits, in nats."""
    unused: tuple[str, ...] = ()
    """Tensors of the model's folder that the network does not use."""
    notes: tuple[str, ...] = ()
    """Notes for the user."""

    def line(self) -> str:
        """The result in one line."""
        rows = "packed rows" if self.form == "packed" else "one row per sequence"
        off = self.packed if self.form == "packed" else self.padded
        if off is None:
            return rows
        gap = "" if self.logprob_gap is None else f", log-probabilities by {self.logprob_gap:.1e} nats"
        return f"{rows}; differs from the model's own forward pass by {off:.1e}{gap}"
