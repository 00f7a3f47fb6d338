"""The memory of all actors, by role. It is asked for at one step and read at the next, so that nobody waits for it."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import ray

from rlhf.tracking.memory import Memory, by_role


class MemoryWatch:
    """Asks actors what they hold. One that has not answered is not asked again until it has."""

    def __init__(self) -> None:
        self._asked: dict[str, ray.ObjectRef] = {}
        self._found: dict[str, Memory] = {}

    def metrics(self, actors: Mapping[str, Any]) -> dict[str, float]:
        """What the actors, by name, last said of themselves, by role; and asks them again."""
        self._listen()
        self._found = {name: memory for name, memory in self._found.items() if name in actors}
        for name, actor in actors.items():
            if name not in self._asked:
                with suppress(Exception):  # the actor is gone; who replaces it is asked the next time
                    self._asked[name] = actor.memory.remote()
        return by_role(self._found)

    def _listen(self) -> None:
        pending = {ref: name for name, ref in self._asked.items()}
        if not pending:
            return
        for ref in ray.wait(list(pending), num_returns=len(pending), timeout=0)[0]:
            name = pending[ref]
            del self._asked[name]
            try:
                self._found[name] = ray.get(ref)
            except Exception:  # of whatever kind: a run does not end for want of this
                self._found.pop(name, None)
