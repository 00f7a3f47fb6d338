"""Measures time: spans of a process, kept in a bounded buffer until they are collected, and seconds by phase."""

from __future__ import annotations

import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

MOST = 8192
"""Largest number of spans in a process's buffer; beyond it the oldest are dropped, and counted."""
_BOOT = Path("/proc/sys/kernel/random/boot_id")


@dataclass(frozen=True, kw_only=True, slots=True)
class Span:
    """An activity from ``begin`` to ``end``, in seconds of one clock."""

    name: str
    begin: float
    end: float
    step: int | None = None
    """The run's step, if the process knows it."""
    details: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Taken:
    """Spans collected from a process, with the time of its clock."""

    spans: tuple[Span, ...]
    now: float
    boot: str
    """Boot id of the machine: processes with the same id share the monotonic clock."""
    dropped: int = 0
    """Number of spans dropped since the last collection, because the buffer was full."""


class Spans:
    """Records spans of a monotonic clock, at a few microseconds each; another thread may collect them."""

    def __init__(self, clock: Callable[[], float] = time.monotonic, most: int = MOST) -> None:
        self.clock = clock
        self._done: deque[Span] = deque(maxlen=most)
        self._dropped = 0

    @contextmanager
    def __call__(self, name: str, step: int | None = None) -> Iterator[None]:
        """Record the block, even if it raises."""
        begin = self.clock()
        try:
            yield
        finally:
            self.add(name, begin, step)

    def add(self, name: str, begin: float, step: int | None = None, **details: Any) -> None:
        """Record a span from ``begin`` to now."""
        if len(self._done) == self._done.maxlen:
            self._dropped += 1
        self._done.append(Span(name=name, begin=begin, end=self.clock(), step=step, details=details))

    def take(self) -> Taken:
        """Remove and return the spans recorded since the last call."""
        spans = []
        with suppress(IndexError):
            while True:
                spans.append(self._done.popleft())
        dropped, self._dropped = self._dropped, 0
        return Taken(spans=tuple(spans), now=self.clock(), boot=boot(), dropped=dropped)


def boot() -> str:
    """Boot id of this machine; empty if the kernel does not provide one."""
    with suppress(OSError):
        return _BOOT.read_text().strip()
    return ""


class PhaseTimer:
    """Collects the seconds spent in named phases: ``with timer("rollout", step): ...``."""

    def __init__(self, clock: Callable[[], float] = time.perf_counter, spans: Spans | None = None) -> None:
        """Begin without recorded phases.

        Args:
            spans: records the phases for the timeline.
        """
        self._clock, self.spans = clock, spans or Spans()
        self.created = clock()
        """Time of the timer's creation, on its clock."""
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
            self.add(phase, start)

    def add(self, phase: str, begin: float) -> None:
        """Add the seconds since ``begin``, a time of this timer's clock, to ``phase``."""
        seconds = self._clock() - begin
        self._step[phase] += seconds
        self.totals[phase] += seconds

    def metrics(self) -> dict[str, float]:
        """``time/<phase>`` in seconds since the last call of this method."""
        metrics = {f"time/{phase}": seconds for phase, seconds in self._step.items()}
        self._step.clear()
        return metrics
