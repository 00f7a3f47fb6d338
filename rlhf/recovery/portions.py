"""What to give out again when whoever had it died: all of it once; after that in halves, until the culprit is alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

CHANCES = 1
"""Deaths in one piece of work that may have had any reason. After one more, the work itself is a suspect."""


@dataclass(kw_only=True)
class Portions:
    """Places of a piece of work that are yet to be given out, portion by portion.

    A prompt that an engine dies of would take one engine after another with it. With n samples it is found, and set
    aside, after CHANCES + 1 + ⌈log₂ n⌉ deaths, and every other sample is answered. Who calls remembers it: the same
    prompt among other samples, or in later work, need not be found again.
    """

    waiting: list[list[int]]
    """Portions in the order in which they are to be given out."""
    losses: int = 0
    set_aside: list[int] = field(default_factory=list)
    """Places that are given up."""

    @classmethod
    def of(cls, count: int) -> Portions:
        """All places from 0 to ``count`` − 1 as one portion, or none where there are none."""
        return cls(waiting=[list(range(count))] if count else [])

    def next(self) -> list[int]:
        """The places to give out now."""
        return self.waiting.pop(0)

    def lost(self, given: Sequence[int], left: Sequence[int]) -> list[int]:
        """Whoever was given some places died and left some of them; returns those that are given up.

        Args:
            given: the places that it had, of which ``left`` were not done.
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
