"""The restart budget: the number of restarts of a command, and the backoff before each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from rlhf.recovery.incident import Incident

DOUBLINGS = 64
"""Largest exponent of the backoff: it reaches any limit, and a float overflows at about 1,000."""


@dataclass(frozen=True, kw_only=True)
class History:
    """The incidents of a command, oldest first, their cost to the budget, and how often in a row each role failed."""

    incidents: tuple[Incident, ...] = ()
    restarts: int = 0
    """Restarts that count against the budget; roles that failed together count once."""
    device_errors: int = 0
    """Restarts for errors of devices, which count against a budget of their own."""
    in_a_row: Mapping[str, int] = field(default_factory=dict)
    """Incidents of each role since it last served for a whole step."""
    recent: frozenset[str] = frozenset()
    """Roles with an incident since the last step ended, which do not serve for the whole current step."""
    furthest: int = -1
    """Highest number of a completed step; a step that is repeated after a roll-back is not further."""
    new_steps: int = 0
    """New steps completed since a restart was last given back."""
    short_of_memory: frozenset[tuple[str, str]] = frozenset()
    """Role and phase of the failures for lack of memory since the last new step."""

    def after(self, *incidents: Incident, is_continued: bool = False) -> History:
        """Add one restart for incidents that happened together, one per role.

        Args:
            is_continued: they belong to the last incident, whose restart is counted already.
        """
        roles, is_device = {incident.role for incident in incidents}, all(each.is_device_error for each in incidents)
        counts = 0 if is_continued else 1
        in_a_row = {
            role: self.in_a_row.get(role, 0) + 1 for role in roles if not is_continued or role not in self.recent
        }
        return replace(
            self,
            incidents=(*self.incidents, *incidents),
            restarts=self.restarts + (0 if is_device else counts),
            device_errors=self.device_errors + (counts if is_device else 0),
            in_a_row={**self.in_a_row, **in_a_row},
            recent=self.recent | roles,
            short_of_memory=self.short_of_memory
            | {(each.role, each.phase) for each in incidents if each.is_memory_error},
        )

    def repeats(self, incident: Incident) -> bool:
        """Whether the role ran out of memory in the same phase before, and no new step was completed since."""
        return incident.is_memory_error and (incident.role, incident.phase) in self.short_of_memory

    def after_step(self, step: int, steps_per_restart: int = 0) -> History:
        """Record the end of a step: roles that served for all of it have no incidents in a row.

        After ``steps_per_restart`` new steps one restart is given back to each budget; 0 gives back none. Repeated
        steps do not count, so that a run that fails at the same step again and again ends.
        """
        kept = {role: count for role, count in self.in_a_row.items() if role in self.recent}
        served = replace(self, in_a_row=kept, recent=frozenset())
        if step <= self.furthest:
            return served
        new_steps = self.new_steps + 1
        given_back = int(steps_per_restart > 0 and new_steps >= steps_per_restart)
        return replace(
            served,
            furthest=step,
            new_steps=0 if given_back else new_steps,
            restarts=max(0, self.restarts - given_back),
            device_errors=max(0, self.device_errors - given_back),
            short_of_memory=frozenset(),
        )

    def closed(self, member: str, seconds: float) -> History:
        """Set the cost of a member's last incident, which serves again after ``seconds``.

        A member that was only restarted with a peer has no open incident.
        """
        open_incidents = [i for i, each in enumerate(self.incidents) if each.member == member and not each.seconds_lost]
        if not open_incidents:
            return self
        incidents, last = list(self.incidents), open_incidents[-1]
        incidents[last] = replace(incidents[last], seconds_lost=seconds)
        return replace(self, incidents=tuple(incidents))

    def text(self) -> str:
        """One line per incident, for the error that ends a run."""
        return "\n".join(incident.row() for incident in self.incidents)


@dataclass(frozen=True, kw_only=True)
class Budget:
    """Limits of the recipe: ``restarts``, ``device_errors`` and the backoff, all in ``recovery``."""

    restarts: int
    """Largest number of restarts of one command."""
    device_errors: int = 0
    """Largest number of restarts for errors of devices."""
    backoff_seconds: float
    """Wait before a role's second restart in a row; the first one is immediate."""
    backoff_limit_seconds: float
    """Longest wait."""

    def spent(self, history: History) -> str | None:
        """The limit that the history exceeds, as text with key and value; None if none.

        Args:
            history: including the incident that requires this restart.
        """
        if history.restarts > self.restarts:
            return f"more than recovery.restarts = {self.restarts} restarts"
        if history.device_errors > self.device_errors:
            return f"more than recovery.device_errors = {self.device_errors} errors of devices"
        return None

    def wait(self, history: History, role: str) -> float:
        """Seconds between the last incident and the restart of ``role``.

        It is 0 for a role's first incident in a row, then ``backoff_seconds``, doubled with each further one.
        """
        before = history.in_a_row.get(role, 0) - 1
        if before < 1:
            return 0.0
        return min(self.backoff_limit_seconds, self.backoff_seconds * 2.0 ** min(before - 1, DOUBLINGS))
