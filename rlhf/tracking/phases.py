"""Measures the time of each phase of a step."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rlhf.tracking.spans import Spans


class PhaseTimer:
    """Collects the seconds spent in named phases: ``with timer("rollout", step): ...``."""

    def __init__(self, clock: Callable[[], float] = time.perf_counter, spans: Spans | None = None) -> None:
        """Args: spans records the phases for the timeline."""
        self._clock, self.spans = clock, spans or Spans()
        self._step: defaultdict[str, float] = defaultdict(float)
        self.totals: defaultdict[str, float] = defaultdict(float)
        """Seconds by phase since the timer was created."""

    @contextmanager
    def __call__(self, phase: str, step: int | None = None) -> Iterator[None]:
        """Add the block's seconds to ``phase``, even if it raises."""
        start = self._clock()
        try:
            with self.spans(phase, step):
                yield
        finally:
            seconds = self._clock() - start
            self._step[phase] += seconds
            self.totals[phase] += seconds

    def metrics(self) -> dict[str, float]:
        """``time/<phase>`` in seconds since the last call of this method."""
        metrics = {f"time/{phase}": seconds for phase, seconds in self._step.items()}
        self._step.clear()
        return metrics
