"""The life of one actor, a rollout engine or a rank of a group, as states and the moves between them.

    STARTING -> LOADED -> CURRENT -> SERVING        a publish sends CURRENT and SERVING back to LOADED
    any of these -> STALLED -> DEAD                 or DEAD at once
    DEAD -> STARTING                                or GONE, for good

There is no move from DEAD, or from LOADED, to SERVING: only who has proved the published weights is CURRENT, and only
who is CURRENT may serve. A move that is not in the table is a mistake of the program and raises ValueError.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import StrEnum

from rlhf.types import UNVERIFIED


class State(StrEnum):
    """Where a member is in its life."""

    STARTING = "starting"
    """Its process is being placed, or is building what it holds."""
    LOADED = "loaded"
    """It has built what it holds, and has yet to prove which weights these are: it serves nothing."""
    CURRENT = "current"
    """It has proved that it holds the published weights."""
    SERVING = "serving"
    """It takes part in the run."""
    STALLED = "stalled"
    """It missed a deadline. It is not trusted again: its process is ended."""
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
"""From each state, the states that may follow it by what the member does; a publish is done to it."""


def role_of(name: str) -> str:
    """``policy`` of ``policy rank 3``, ``rollout`` of ``rollout engine 0``; a name that has no number is its own."""
    return re.sub(r"( (rank|engine))? \d+$", "", name)


@dataclass(frozen=True, kw_only=True)
class Member:
    """One actor as it is now. Every method returns the member as it is afterwards; ``now`` is the moment in seconds.

    A member whose weights never change (a reference, a reward model) has version 0 to prove, once.
    """

    name: str
    """For messages: ``rollout engine 0``, ``policy rank 1``."""
    since: float
    """When it came into its state, in seconds of whatever clock the caller reads."""
    published: int = 0
    """Version of the weights that it has to hold."""
    state: State = State.STARTING
    version: int = UNVERIFIED
    """Version that it has proved to hold: ``published`` while it is CURRENT or SERVING, UNVERIFIED otherwise."""
    deaths: int = 0
    """How often its process has gone."""

    @property
    def serves(self) -> bool:
        """Whether it takes part in the run."""
        return self.state is State.SERVING

    @property
    def has_process(self) -> bool:
        """Whether there is a process, sound or stalled, that would have to be ended."""
        return self.state not in (State.DEAD, State.GONE)

    def loaded(self, now: float) -> Member:
        """It has built what it holds."""
        return self._to(State.LOADED, now)

    def proved(self, version: int, now: float) -> Member:
        """It has shown that it holds ``version`` of the weights.

        Raises:
            ValueError: another version is published: a proof that came too late, or of the wrong weights.
        """
        if version != self.published:
            raise ValueError(f"{self.name} proved version {version} of the weights; {self.published} is published")
        return self._to(State.CURRENT, now, version=version)

    def admitted(self, now: float) -> Member:
        """It takes part in the run from now on."""
        return self._to(State.SERVING, now, version=self.version)

    def published_to(self, version: int, now: float) -> Member:
        """``version`` is published: whoever had proved another proves again. Who is not as far yet proves it later."""
        if self.state not in (State.CURRENT, State.SERVING):
            return replace(self, published=version)
        return replace(self, state=State.LOADED, since=now, version=UNVERIFIED, published=version)

    def stalled(self, now: float) -> Member:
        """It missed a deadline."""
        return self._to(State.STALLED, now)

    def died(self, now: float) -> Member:
        """Its process is gone, by itself or because it was ended."""
        return self._to(State.DEAD, now, deaths=self.deaths + 1)

    def restarted(self, now: float) -> Member:
        """A new process is on its way."""
        return self._to(State.STARTING, now)

    def given_up(self, now: float) -> Member:
        """There will be no new process."""
        return self._to(State.GONE, now)

    def _to(self, state: State, now: float, version: int = UNVERIFIED, deaths: int | None = None) -> Member:
        """Moved to ``state``. What was proved is forgotten unless ``version`` says otherwise."""
        if state not in MOVES[self.state]:
            raise ValueError(f"{self.name} cannot go from {self.state} to {state}")
        deaths = self.deaths if deaths is None else deaths
        return replace(self, state=state, since=now, version=version, deaths=deaths)
