"""The project's progress as raters see it, counted at most every few seconds."""

from __future__ import annotations

from rlhf.feedback.records import Purpose
from rlhf.feedback.store import Store

SECONDS = 10.0
"""Age at which the number is counted again: counting reads an index over all items."""


class ProjectProgress:
    """Keeps the last number."""

    def __init__(self) -> None:
        self._counted, self._percent = float("-inf"), 0

    def percent(self, store: Store, now: float) -> int:
        """Items that have all their votes, in percent; ``now`` is in seconds."""
        if now - self._counted >= SECONDS:
            counts = store.counts()
            self._percent = 100 * counts.complete // max(1, counts.items[Purpose.LABEL])
            self._counted = now
        return self._percent
