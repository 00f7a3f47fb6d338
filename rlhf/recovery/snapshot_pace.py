"""How often snapshots are taken so that they cost little: decided by the measured duration of the last one."""

from __future__ import annotations

import math
from dataclasses import dataclass

COST = 0.02
"""Largest fraction of the time since the last snapshot that the next one may take."""


@dataclass(kw_only=True)
class SnapshotPace:
    """When the next snapshot is due: when the last one's duration is at most ``COST`` of the time since it ended.

    The first snapshot is due at once. Times are seconds of one monotonic clock.
    """

    seconds: float = 0.0
    """Duration of the last snapshot."""
    ended: float = -math.inf
    """Time at which it was complete."""

    def took(self, begin: float, end: float) -> None:
        """Record a snapshot."""
        self.seconds, self.ended = end - begin, end

    def is_due(self, now: float) -> bool:
        """Whether a snapshot that takes as long as the last one may be taken now."""
        return self.seconds <= COST * (now - self.ended)
