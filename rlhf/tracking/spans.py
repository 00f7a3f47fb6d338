"""What a process did and when, as spans: kept in a bounded buffer until somebody takes them."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

MOST = 8192
"""Spans that a process keeps until they are taken; beyond it the oldest are dropped, and counted."""
_BOOT = Path("/proc/sys/kernel/random/boot_id")


@dataclass(frozen=True, kw_only=True, slots=True)
class Span:
    """Something that was done from ``begin`` to ``end``, in seconds of one clock."""

    name: str
    begin: float
    end: float
    step: int | None = None
    """The run's step, where the one that made the span knows it."""
    details: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Taken:
    """Spans of a process, with what their clock showed when they were taken."""

    spans: tuple[Span, ...]
    now: float
    boot: str
    """Of this start of the machine: processes that have it in common have their monotonic clock in common."""
    dropped: int = 0
    """Spans that were lost since the last time, for there were too many."""


class Spans:
    """Records spans of a monotonic clock. A few microseconds each; another thread may take them meanwhile."""

    def __init__(self, clock: Callable[[], float] = time.monotonic, most: int = MOST) -> None:
        self.clock = clock
        self._done: deque[Span] = deque(maxlen=most)
        self._dropped = 0

    @contextmanager
    def __call__(self, name: str, step: int | None = None) -> Iterator[None]:
        """Record the block, also where it raises."""
        begin = self.clock()
        try:
            yield
        finally:
            self.add(name, begin, step)

    def add(self, name: str, begin: float, step: int | None = None, **details: Any) -> None:
        """Record what began at ``begin`` and ends now."""
        if len(self._done) == self._done.maxlen:
            self._dropped += 1
        self._done.append(Span(name=name, begin=begin, end=self.clock(), step=step, details=details))

    def take(self) -> Taken:
        """What was recorded since the last time."""
        spans = []
        with suppress(IndexError):
            while True:
                spans.append(self._done.popleft())
        dropped, self._dropped = self._dropped, 0
        return Taken(spans=tuple(spans), now=self.clock(), boot=boot(), dropped=dropped)


def boot() -> str:
    """What names this start of this machine; empty where the kernel does not tell."""
    with suppress(OSError):
        return _BOOT.read_text().strip()
    return ""
