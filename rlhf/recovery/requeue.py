"""Decides whether a scheduler repeats a command that ended.

A repetition resumes from the last checkpoint. It is worth it if the cause may pass, and if the attempts get further: a
command that ends again and again before it completes another step would never finish.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

Progress = Mapping[str, int]
"""Stage → its completed steps, and one more once the stage is finished."""


@dataclass(frozen=True, kw_only=True)
class Attempts:
    """The attempts of one job so far, which outlive each of them."""

    furthest: Progress = field(default_factory=dict)
    """Most steps of each stage that any attempt completed; a resumed attempt repeats some of them."""
    fruitless: int = 0
    """Attempts in a row, the current one included, that completed no further step."""
    final: int | None = None
    """Exit code of an attempt that is not to be repeated, until the scheduler has been told; None before."""

    def begin(self, now: Progress) -> Attempts:
        """Count a new attempt. It is counted before it does anything, because it may be killed."""
        known = self.observe(now)
        return replace(known, fruitless=known.fruitless + 1)

    def observe(self, now: Progress) -> Attempts:
        """Take the completed steps into account."""
        if all(steps <= self.furthest.get(stage, 0) for stage, steps in now.items()):
            return self
        stages = {*self.furthest, *now}
        return Attempts(furthest={stage: max(self.furthest.get(stage, 0), now.get(stage, 0)) for stage in stages})

    def may_continue(self, limit: int) -> bool:
        """Whether another attempt follows.

        Args:
            limit: largest number of repetitions in a row without a further step (``recovery.requeues``).
        """
        return self.fruitless <= limit
