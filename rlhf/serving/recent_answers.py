"""The last answers with their prompts, so that a thumb that names only an answer's id can be stored with both."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable
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


@dataclass(frozen=True, kw_only=True)
class KeptAnswer:
    """An answer with its id, and its age in seconds."""

    id: str
    age: float
    answer: RecentAnswer


@dataclass(frozen=True, kw_only=True)
class AnswerChanges:
    """What was kept and forgotten since the last changes."""

    added: tuple[KeptAnswer, ...] = ()
    forgotten: tuple[str, ...] = ()


class RecentAnswers:
    """Answers by id, in memory: bounded in bytes and age; the oldest are forgotten first."""

    def __init__(self, most_bytes: int, seconds: float, clock: Callable[[], float], has_changes: bool = False) -> None:
        """Begin without answers.

        Args:
            has_changes: whether somebody takes the ``changes``.
        """
        self._most, self._seconds, self._clock, self._has_changes = most_bytes, seconds, clock, has_changes
        self._added: list[str] = []
        self._forgotten: list[str] = []
        self._kept: OrderedDict[str, tuple[float, RecentAnswer]] = OrderedDict()
        self._bytes = 0

    def add(self, id: str, answer: RecentAnswer) -> None:
        """Keep an answer; one that was kept under the same id stays: an id is judged once."""
        if not id or id in self._kept:
            return
        if self._has_changes:
            self._added.append(id)
        self._keep(id, self._clock(), answer)

    def restore(self, earlier: Iterable[KeptAnswer]) -> None:
        """Keep answers of an earlier time, oldest first; there are none yet."""
        for each in earlier:
            self._keep(each.id, self._clock() - each.age, each.answer)

    def changes(self) -> AnswerChanges:
        """Take what was kept and forgotten since the last call."""
        self._forget()
        now, added, forgotten = self._clock(), self._added, self._forgotten
        self._added, self._forgotten = [], []
        kept = [(id, *self._kept[id]) for id in added if id in self._kept]
        return AnswerChanges(
            added=tuple(KeptAnswer(id=id, age=now - when, answer=answer) for id, when, answer in kept),
            forgotten=tuple(forgotten),
        )

    def _keep(self, id: str, when: float, answer: RecentAnswer) -> None:
        self._kept[id] = (when, answer)
        self._bytes += _size(answer)
        self._forget()

    def _forget(self) -> None:
        while self._kept and (self._bytes > self._most or self._is_old()):
            id, (_, oldest) = self._kept.popitem(last=False)
            self._bytes -= _size(oldest)
            if self._has_changes:
                self._forgotten.append(id)

    def get(self, id: str) -> RecentAnswer | None:
        """The answer with this id; None if it is unknown or too old."""
        added, answer = self._kept.get(id, (0.0, None))
        return answer if answer is not None and self._clock() - added <= self._seconds else None

    def _is_old(self) -> bool:
        added, _ = next(iter(self._kept.values()))
        return self._clock() - added > self._seconds


def _size(answer: RecentAnswer) -> int:
    return len(answer.request) + len(answer.raw)
