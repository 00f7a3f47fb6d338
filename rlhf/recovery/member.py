"""The state machine of one actor: a rollout engine, or a rank of a group.

    STARTING -> LOADED -> CURRENT -> SERVING        a publish moves CURRENT and SERVING back to LOADED
    any of these -> STALLED -> DEAD                 or DEAD at once
    DEAD -> STARTING                                or GONE, for good

DEAD and LOADED have no transition to SERVING: an actor becomes CURRENT only by proving the published weights, and only
a CURRENT actor may serve. A transition that is not in the table is a bug and raises ValueError.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import StrEnum

from rlhf.types import UNVERIFIED


class State(StrEnum):
    """State of an actor."""

    STARTING = "starting"
    """Its process is being scheduled, or loads its model."""
    LOADED = "loaded"
    """It has loaded, and has not proved the version of its weights: it does not serve."""
    CURRENT = "current"
    """It has proved that it holds the published weights."""
    SERVING = "serving"
    """It takes part in the run."""
    STALLED = "stalled"
    """It missed a deadline; its process is killed."""
    DEAD = "dead"
    """It has no process."""
    GONE = "gone"
    """It is dead and will not be restarted."""


MOVES: Mapping[State, frozenset[State]] = {
    State.STARTING: frozenset({State.LOADED, State.STALLED, State.DEAD}),
    State.LOADED: frozenset({State.CURRENT, State.STALLED, State.DEAD}),
    State.CURRENT: frozenset({State.SERVING, State.STALLED, State.DEAD}),
    State.SERVING: frozenset({State.STALLED, State.DEAD}),
    State.STALLED: frozenset({State.DEAD}),
    State.DEAD: frozenset({State.STARTING, State.GONE}),
    State.GONE: frozenset(),
}
"""States that may follow each state; a publish is handled separately."""


def role_of(name: str) -> str:
    """Role in a name: ``policy`` for ``policy rank 3``, ``rollout`` for ``rollout engine 0``; else the name itself."""
    return re.sub(r"( (rank|engine))? \d+$", "", name)


@dataclass(frozen=True, kw_only=True)
class Member:
    """State of one actor. Methods return the member after a transition; ``now`` is the time in seconds.

    A member whose weights never change (a reference, a reward model) proves version 0 once.
    """

    name: str
    """Name for messages: ``rollout engine 0``, ``policy rank 1``."""
    since: float
    """Time of the last transition, in seconds of the caller's clock."""
    published: int = 0
    """Version of the weights that it must hold."""
    state: State = State.STARTING
    version: int = UNVERIFIED
    """Version that it has proved: ``published`` while it is CURRENT or SERVING, UNVERIFIED otherwise."""
    deaths: int = 0
    """Number of times that its process ended."""

    @property
    def serves(self) -> bool:
        """Whether it takes part in the run."""
        return self.state is State.SERVING

    @property
    def has_process(self) -> bool:
        """Whether it has a process, healthy or stalled, that must be killed before a restart."""
        return self.state not in (State.DEAD, State.GONE)

    def loaded(self, now: float) -> Member:
        """It has loaded."""
        return self._to(State.LOADED, now)

    def proved(self, version: int, now: float) -> Member:
        """It has proved that it holds ``version`` of the weights.

        Raises:
            ValueError: another version is published.
        """
        if version != self.published:
            raise ValueError(f"{self.name} proved version {version} of the weights; {self.published} is published")
        return self._to(State.CURRENT, now, version=version)

    def admitted(self, now: float) -> Member:
        """It serves from now on."""
        return self._to(State.SERVING, now, version=self.version)

    def published_to(self, version: int, now: float) -> Member:
        """``version`` is published: a member that had proved another version goes back to LOADED."""
        if self.state not in (State.CURRENT, State.SERVING):
            return replace(self, published=version)
        return replace(self, state=State.LOADED, since=now, version=UNVERIFIED, published=version)

    def stalled(self, now: float) -> Member:
        """It missed a deadline."""
        return self._to(State.STALLED, now)

    def died(self, now: float) -> Member:
        """Its process has ended, by itself or killed."""
        return self._to(State.DEAD, now, deaths=self.deaths + 1)

    def restarted(self, now: float) -> Member:
        """A new process is starting."""
        return self._to(State.STARTING, now)

    def given_up(self, now: float) -> Member:
        """It will not be restarted."""
        return self._to(State.GONE, now)

    def _to(self, state: State, now: float, version: int = UNVERIFIED, deaths: int | None = None) -> Member:
        """Move to ``state``; the proved version is reset to ``version``."""
        if state not in MOVES[self.state]:
            raise ValueError(f"{self.name} cannot go from {self.state} to {state}")
        deaths = self.deaths if deaths is None else deaths
        return replace(self, state=state, since=now, version=version, deaths=deaths)
