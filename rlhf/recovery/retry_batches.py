"""Chooses the samples to re-dispatch when engines are lost: whole once, then halves, to isolate poison prompts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

CHANCES = 1
"""Losses of an engine that are not blamed on the samples in flight there. After the next one they are suspects."""


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Positions of samples that are dispatched together."""

    positions: tuple[int, ...]
    losses: int = 0
    """Number of times that these samples were in flight on an engine that was lost."""
    is_spared: bool = False
    """Whether one of these times was not counted, as the engine was probably lost before it got the samples."""

    @property
    def is_suspect(self) -> bool:
        """Whether one of its samples may have killed the engines: it is given to an engine that has no other work."""
        return self.losses > CHANCES

    def part(self, positions: Sequence[int]) -> Batch:
        """The same batch with some of its positions."""
        return replace(self, positions=tuple(positions))


@dataclass(kw_only=True)
class RetryBatches:
    """The batches of a call that are yet to be dispatched.

    A poison prompt would kill one engine after another. A sample is quarantined if its engine was lost while it was
    the only sample there, after ``CHANCES`` losses that may have had other causes. Among the n samples of an engine a
    poison prompt is thus found after CHANCES + 1 + ⌈log₂ n⌉ losses, and every other sample is answered. Each sample's
    losses are counted separately, so that engines which are lost together, whatever their number, are one loss for
    their samples. The caller remembers poison prompts, so that the same one need not be found again.
    """

    waiting: list[Batch]
    """Batches in the order in which they are to be dispatched."""
    set_aside: list[int] = field(default_factory=list)
    """Quarantined positions."""

    @classmethod
    def of(cls, count: int) -> RetryBatches:
        """Positions 0 to ``count`` − 1 as one batch, or no batch if ``count`` is 0."""
        return cls(waiting=[Batch(positions=tuple(range(count)))] if count else [])

    def lost(self, given: Batch, left: Sequence[int], is_alone: bool = True, is_continued: bool = False) -> list[int]:
        """Requeue what a lost engine did not answer; returns the positions that are quarantined instead.

        Args:
            given: the batch, or the part of it, that the engine was assigned.
            left: the positions of it that it did not answer.
            is_alone: whether the engine had no other samples.
            is_continued: the loss belongs to an incident in which other engines were lost just before. Samples of those
                may have been given to an engine that was lost already: that is not counted, once.
        """
        if not left:
            return []
        if is_continued and given.losses and not given.is_spared:
            self._requeue(replace(given.part(left), is_spared=True))
            return []
        lost = replace(given.part(left), losses=given.losses + 1)
        if not lost.is_suspect:
            self._requeue(lost)
            return []
        if len(given.positions) == 1 and is_alone:
            self.set_aside += left
            return list(left)
        middle = (len(left) + 1) // 2
        self.waiting[:0] = [lost.part(half) for half in (left[:middle], left[middle:]) if half]
        return []

    def _requeue(self, batch: Batch) -> None:
        """Join a batch to the waiting one with the same history, so that engines share both evenly, or put it first."""
        for index, other in enumerate(self.waiting):
            if (other.losses, other.is_spared) == (batch.losses, batch.is_spared) and not batch.is_suspect:
                self.waiting[index] = other.part((*other.positions, *batch.positions))
                return
        self.waiting.insert(0, batch)
