"""How long a rater has been at work: a session ends with a pause."""

from __future__ import annotations

from collections.abc import Iterable

PAUSE_SECONDS = 1800.0
"""A longer time without a vote or a page view ends a session."""


class SessionTimes:
    """When each rater's present session began. After a restart the votes tell."""

    def __init__(self) -> None:
        self._spans: dict[str, tuple[float, float]] = {}

    def is_known(self, alias: str) -> bool:
        """Whether this rater was seen before."""
        return alias in self._spans

    def learn(self, alias: str, times: Iterable[float]) -> None:
        """Take over a rater's earlier votes, given by their Unix times in seconds, in any order."""
        for time in sorted(times):
            self.see(alias, time)

    def see(self, alias: str, now: float) -> float:
        """Note a sign of life; returns the seconds since the session began."""
        start, last = self._spans.get(alias, (now, now))
        if now - last > PAUSE_SECONDS:
            start = now
        self._spans[alias] = (start, now)
        return now - start
