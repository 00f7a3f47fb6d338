"""The last answers with their prompts, so that a thumb that names only an answer's id can be stored with both."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class RecentAnswer:
    """An answer as it was sent. It is parsed only if somebody judges it: most answers are never judged."""

    request: bytes
    raw: bytes
    is_stream: bool
    version: str
    owner: str
    """Name of the API key that got the answer, and that may judge it."""


class RecentAnswers:
    """Answers by id, in memory: bounded in bytes and age; the oldest are forgotten first."""

    def __init__(self, most_bytes: int, seconds: float, clock: Callable[[], float]) -> None:
        self._most, self._seconds, self._clock = most_bytes, seconds, clock
        self._kept: OrderedDict[str, tuple[float, RecentAnswer]] = OrderedDict()
        self._bytes = 0

    def add(self, id: str, answer: RecentAnswer) -> None:
        """Keep an answer; one that was kept under the same id stays: an id is judged once."""
        if not id or id in self._kept:
            return
        self._kept[id] = (self._clock(), answer)
        self._bytes += _size(answer)
        while self._kept and (self._bytes > self._most or self._is_old()):
            _, (_, oldest) = self._kept.popitem(last=False)
            self._bytes -= _size(oldest)

    def get(self, id: str) -> RecentAnswer | None:
        """The answer with this id; None if it is unknown or too old."""
        added, answer = self._kept.get(id, (0.0, None))
        return answer if answer is not None and self._clock() - added <= self._seconds else None

    def _is_old(self) -> bool:
        added, _ = next(iter(self._kept.values()))
        return self._clock() - added > self._seconds


def _size(answer: RecentAnswer) -> int:
    return len(answer.request) + len(answer.raw)
