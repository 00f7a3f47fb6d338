"""Counts the parts of a long call that this process has completed, so that slow work can be told from a hang.

A part is a micro-batch of an update or a forward pass, or one step of the inference engine. On a GPU a part counts when
its kernels are queued: the queue is short, so that the count stops soon after the GPU does.
"""

from __future__ import annotations

import time
from collections.abc import Callable


class Progress:
    """Number of completed parts, and the time of the last one; another thread may read both."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self.parts = 0
        """Parts completed since the process started."""
        self._last = clock()

    def part_done(self) -> None:
        """Record a completed part."""
        self._last = self._clock()
        self.parts += 1

    def idle(self) -> float:
        """Seconds since the last part, or since the process started."""
        return self._clock() - self._last


PROGRESS = Progress()
"""Of this process, which runs one actor."""
