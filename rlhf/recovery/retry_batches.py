"""Chooses the samples to re-dispatch after a failure: all of them once, then halves, to isolate poison prompts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

CHANCES = 1
"""Failures in one call that are not blamed on a prompt. From the next one on, the prompts are suspected."""


@dataclass(kw_only=True)
class RetryBatches:
    """Positions of samples that are yet to be dispatched, batch by batch.

    A poison prompt would kill one engine after another. Among n samples it is found, and quarantined, after
    CHANCES + 1 + ⌈log₂ n⌉ failures, and every other sample is answered. The caller remembers it, so that the same
    prompt need not be found again among other samples or in a later call.
    """

    waiting: list[list[int]]
    """Batches in the order in which they are to be dispatched."""
    losses: int = 0
    """Failures so far."""
    set_aside: list[int] = field(default_factory=list)
    """Quarantined positions."""

    @classmethod
    def of(cls, count: int) -> RetryBatches:
        """Positions 0 to ``count`` − 1 as one batch, or no batch if ``count`` is 0."""
        return cls(waiting=[list(range(count))] if count else [])

    def next(self) -> list[int]:
        """Remove the first waiting batch and return it."""
        return self.waiting.pop(0)

    def lost(self, given: Sequence[int], left: Sequence[int]) -> list[int]:
        """Requeue what a failed engine did not answer; returns the positions that are quarantined instead.

        Args:
            given: positions that the engine was assigned.
            left: those of them that it did not answer.
        """
        self.losses += 1
        if not left:
            return []
        if self.losses <= CHANCES:
            self.waiting.insert(0, list(left))
            return []
        if len(given) == 1:
            self.set_aside += left
            return list(left)
        middle = (len(left) + 1) // 2
        self.waiting[:0] = [part for part in (list(left[:middle]), list(left[middle:])) if part]
        return []
