"""How often somebody may ask: token buckets by rater and by address."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

MOST_KEYS = 10_000
"""Buckets kept; the one that was used longest ago is forgotten, which only ever permits more."""


@dataclass(frozen=True, kw_only=True)
class Rate:
    """A bucket's size and the rate at which it fills."""

    burst: float
    """Requests that may come at once."""
    per_second: float


class RateLimit:
    """One bucket for each key."""

    def __init__(self, rate: Rate, clock: Callable[[], float]) -> None:
        """Args: clock gives seconds and never goes back."""
        self._rate, self._clock = rate, clock
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def take(self, key: str) -> float:
        """Count a request; returns 0 if it is allowed, else the seconds until one is."""
        level = self._level(key)
        is_allowed = level >= 1
        self._keep(key, level - 1 if is_allowed else level)
        return 0.0 if is_allowed else (1 - level) / self._rate.per_second

    def wait(self, key: str) -> float:
        """As ``take``, without counting."""
        return max(0.0, 1 - self._level(key)) / self._rate.per_second

    def _level(self, key: str) -> float:
        level, time = self._buckets.get(key, (self._rate.burst, self._clock()))
        return min(self._rate.burst, level + (self._clock() - time) * self._rate.per_second)

    def _keep(self, key: str, level: float) -> None:
        self._buckets[key] = (level, self._clock())
        self._buckets.move_to_end(key)
        if len(self._buckets) > MOST_KEYS:
            self._buckets.popitem(last=False)
