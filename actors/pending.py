"""Results that the controller awaits: which are pending, which are ready, and for how long each actor gave none.

Ray calls back when a result is ready, so that the cost of a result does not depend on how many others are pending.
"""

from __future__ import annotations

import time
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import Any

import ray

from rlhf.recovery.member import role_of

PER_ANSWER = 2
"""Items that an answer of a stream consists of: a block of rollouts and its summary."""


@dataclass(kw_only=True, eq=False)
class Awaited:
    """A pending result. ``ref`` is ready when the result is; it is held because Ray forgets references that are not.

    ``added`` and ``ready_at`` are seconds of ``time.monotonic``: work goes on while the controller waits for others.
    """

    key: Any
    name: str
    ref: ray.ObjectRef
    added: float
    ready_at: float = 0.0
    is_ready: bool = False
    cancel: Callable[[], None] = lambda: None


@dataclass(kw_only=True)
class Owed:
    """Number of an actor's pending results, and how many of them are ready."""

    since: float
    """Its last answer, or its last progress, on ``Pending``'s clock."""
    answered: float
    """Its last answer on that clock."""
    ready_at: float = 0.0
    """When its last result became ready; see ``Awaited``."""
    pending: int = 0
    ready: int = 0


class Pending:
    """The pending results of a phase. Adding a result and taking a ready one cost O(1).

    The clock of ``seconds_left`` and ``late`` advances only during ``wait``, for all actors alike, so that actors with
    equal deadlines are late together, and time that the controller spends on other work is nobody's delay.
    """

    def __init__(self, names: Mapping[Any, str] | None = None) -> None:
        """Await results; ``names`` maps references, or streams that yield blocks and summaries, to actors' names."""
        self._waited = 0.0
        self._awaited: dict[Any, Awaited] = {}
        self._owed: dict[str, OrderedDict[str, Owed]] = {}
        """What each actor owes, by role and name; in each role ordered by the time of the last answer."""
        self._called_back: SimpleQueue[Awaited] = SimpleQueue()
        self._ready: deque[Awaited] = deque()
        for key, name in (names or {}).items():
            self.add(key, name)

    def __len__(self) -> int:
        return len(self._awaited)

    def add(self, key: Any, name: str) -> None:
        """Await another result of an actor; a stream is ready when its next block and summary are, or at its end."""
        awaited = Awaited(key=key, name=name, ref=_next_ref(key), added=time.monotonic())
        self._awaited[key] = awaited
        self._of_role(name).setdefault(name, Owed(since=self._waited, answered=self._waited)).pending += 1
        awaited.cancel = awaited.ref._on_ready(lambda error: self._call_back(awaited))

    def _call_back(self, awaited: Awaited) -> None:
        """Called in a thread of Ray when a result is ready."""
        awaited.ready_at = time.monotonic()
        self._called_back.put(awaited)

    def discard(self, keys: Iterable[Any]) -> None:
        """Stop awaiting these results; keys that are not pending are ignored."""
        for key in keys:
            if (awaited := self._awaited.pop(key, None)) is not None:
                awaited.cancel()
                if awaited.is_ready:
                    self._ready.remove(awaited)
                self._forget(awaited)

    def replace(self, names: Mapping[Any, str]) -> None:
        """Await exactly these results: the missing ones are added, others discarded."""
        self.discard([key for key in self._awaited if key not in names])
        for key in names.keys() - self._awaited.keys():
            self.add(key, names[key])

    def wait(self, seconds: float) -> bool:
        """Wait until a result is ready, at most so long; returns whether one is."""
        begin = time.monotonic()
        while not self._ready and self._take_callback(begin + seconds):
            pass
        self._waited += time.monotonic() - begin
        while self._take_callback(0.0):
            pass
        return bool(self._ready)

    def _take_callback(self, end: float) -> bool:
        """Take one callback that comes before ``end``; returns whether one came."""
        try:
            awaited = self._called_back.get(timeout=max(end - time.monotonic(), 0.0))
        except Empty:
            return False
        if self._awaited.get(awaited.key) is awaited:  # otherwise it was discarded meanwhile
            awaited.is_ready = True
            self._ready.append(awaited)
            self._of_role(awaited.name)[awaited.name].ready += 1
        return True

    def pop(self) -> tuple[Any, str, float]:
        """Take a ready result: its key, its actor's name, and how many seconds the actor worked on it.

        These begin when the result was added, or when the actor's last one was ready, and end when it was ready.
        """
        awaited = self._ready.popleft()
        del self._awaited[awaited.key]
        owed = self._of_role(awaited.name)[awaited.name]
        seconds = max(0.0, awaited.ready_at - max(awaited.added, owed.ready_at))
        owed.ready_at = awaited.ready_at
        self._forget(awaited)
        self.restart([awaited.name])
        return awaited.key, awaited.name, seconds

    def restart(self, names: Iterable[str]) -> None:
        """Count the time of these actors from now on."""
        for name in names:
            actors = self._of_role(name)
            if name in actors:
                actors[name].since = actors[name].answered = self._waited
                actors.move_to_end(name)

    def count_progress(self, idle: Mapping[str, float], deadline: Callable[[str], float], limit: float) -> None:
        """Count the time of actors from their last progress, as if it had been an answer.

        Args:
            idle: seconds since the last progress, by name.
            deadline: see ``late``.
            limit: longest time without an answer; progress does not extend it.
        """
        for name, seconds in idle.items():
            if (owed := self._of_role(name).get(name)) is not None:
                latest = owed.answered + limit - deadline(name)
                owed.since = max(owed.since, min(self._waited - seconds, latest))
        for role in {role_of(name) for name in idle}:
            self._owed[role] = OrderedDict(sorted(self._owed[role].items(), key=lambda item: item[1].since))

    def seconds_left(self, deadline: Callable[[str], float]) -> float:
        """Seconds until the first actor is late; ``deadline`` maps an actor's name to seconds, equal within a role."""
        firsts = [next(iter(actors.items())) for actors in self._owed.values() if actors]
        return min(deadline(name) - (self._waited - owed.since) for name, owed in firsts)

    def late(self, deadline: Callable[[str], float]) -> tuple[str, ...]:
        """Names of the actors that gave no result within their deadline, and have none ready, sorted."""
        late = []
        for actors in self._owed.values():
            for name, owed in actors.items():
                if self._waited - owed.since < deadline(name):
                    break
                if not owed.ready:
                    late.append(name)
        return tuple(sorted(late))

    def _of_role(self, name: str) -> OrderedDict[str, Owed]:
        return self._owed.setdefault(role_of(name), OrderedDict())

    def _forget(self, awaited: Awaited) -> None:
        """Count one result less; an actor that owes none is dropped."""
        actors, name = self._of_role(awaited.name), awaited.name
        actors[name].pending -= 1
        actors[name].ready -= awaited.is_ready
        if not actors[name].pending:
            del actors[name]


def _next_ref(key: Any) -> ray.ObjectRef:
    """The reference whose readiness means that a result can be taken."""
    return key._get_next_ref_n(PER_ANSWER)[-1] if isinstance(key, ray.ObjectRefGenerator) else key
