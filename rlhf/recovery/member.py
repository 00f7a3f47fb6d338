"""The state machine of one actor: a rollout engine, or a rank of a group.

    STARTING -> LOADED -> SERVING        a publish moves SERVING back to LOADED
    any of these -> DEAD -> STARTING

An actor serves only once its weights are verified to be the published ones. A transition that is not in
the table is a bug and raises ValueError.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import cache


class State(StrEnum):
    """State of an actor."""

    STARTING = "starting"
    """Its process is being scheduled, or loads its model."""
    LOADED = "loaded"
    """It has loaded, and its weights are not verified yet: it does not serve."""
    SERVING = "serving"
    """It is verified to hold the published weights, and takes part in the run."""
    DEAD = "dead"
    """It has no process."""


MOVES: Mapping[State, frozenset[State]] = {
    State.STARTING: frozenset({State.LOADED, State.DEAD}),
    State.LOADED: frozenset({State.SERVING, State.DEAD}),
    State.SERVING: frozenset({State.DEAD}),
    State.DEAD: frozenset({State.STARTING}),
}
"""States that may follow each state; a publish is handled separately."""


@cache
def role_of(name: str) -> str:
    """Role in a name: ``policy`` for ``policy rank 3``, ``rollout`` for ``rollout engine 0``; else the name itself."""
    return re.sub(r"( (rank|engine))? \d+$", "", name)


@dataclass(frozen=True, kw_only=True)
class Member:
    """State of one actor. Methods return the member after a transition.

    A member whose weights never change (a reference, a reward model) is verified once, with version 0.
    """

    name: str
    """Name for messages: ``rollout engine 0``, ``policy rank 1``."""
    published: int = 0
    """Version of the weights that it must hold."""
    state: State = State.STARTING

    @property
    def serves(self) -> bool:
        """Whether it takes part in the run."""
        return self.state is State.SERVING

    @property
    def has_process(self) -> bool:
        """Whether it has a process, which must be killed before a restart."""
        return self.state is not State.DEAD

    def loaded(self) -> Member:
        """It has loaded."""
        return self._to(State.LOADED)

    def verified(self, version: int) -> Member:
        """It is verified to hold ``version`` of the weights, and serves.

        Raises:
            ValueError: another version is published.
        """
        if version != self.published:
            raise ValueError(f"{self.name} holds version {version} of the weights; {self.published} is published")
        return self._to(State.SERVING)

    def published_to(self, version: int) -> Member:
        """``version`` is published: a serving member must be verified again."""
        return replace(self, state=State.LOADED if self.serves else self.state, published=version)

    def died(self) -> Member:
        """Its process has ended, by itself or killed."""
        return self._to(State.DEAD)

    def restarted(self) -> Member:
        """A new process is starting."""
        return self._to(State.STARTING)

    def _to(self, state: State) -> Member:
        if state not in MOVES[self.state]:
            raise ValueError(f"{self.name} cannot go from {self.state} to {state}")
        return replace(self, state=state)
