"""Memory of all actors, by role; requested at one step and read at the next, so that no step waits for it."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import ray

from rlhf.tracking.memory import ActorMemory, by_role


class MemoryWatch:
    """Requests actors' memory figures. An actor with a pending request gets no other."""

    def __init__(self) -> None:
        self._asked: dict[str, ray.ObjectRef] = {}
        self._found: dict[str, ActorMemory] = {}

    def metrics(self, actors: Mapping[str, Any]) -> dict[str, float]:
        """Return metrics by role, in GiB, from the latest answers of these actors, and send new requests."""
        self._listen()
        self._found = {name: memory for name, memory in self._found.items() if name in actors}
        for name, actor in actors.items():
            if name not in self._asked:
                with suppress(Exception):  # the actor is gone; its replacement is asked next time
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
            except Exception:  # memory figures are informative: no failure here may end the run
                self._found.pop(name, None)
