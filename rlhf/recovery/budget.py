"""The restart budget: the number of restarts of a command, and the backoff before each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from rlhf.recovery.incident import Incident

DOUBLINGS = 64
"""Largest exponent of the backoff: it reaches any limit, and a float overflows at about 1,000."""


@dataclass(frozen=True, kw_only=True)
class History:
    """The incidents of a command, oldest first, and how often in a row each role failed."""

    incidents: tuple[Incident, ...] = ()
    restarts: int = 0
    """Number of restarts; roles that failed together count once."""
    in_a_row: Mapping[str, int] = field(default_factory=dict)
    """Incidents of each role since it last served for a whole step."""
    recent: frozenset[str] = frozenset()
    """Roles with an incident since the last step ended, which do not serve for the whole current step."""

    def after(self, *incidents: Incident) -> History:
        """Add one restart for incidents that happened together, one per role."""
        roles = {incident.role for incident in incidents}
        return History(
            incidents=(*self.incidents, *incidents),
            restarts=self.restarts + 1,
            in_a_row={**self.in_a_row, **{role: self.in_a_row.get(role, 0) + 1 for role in roles}},
            recent=self.recent | roles,
        )

    def after_step(self) -> History:
        """Record the end of a step: roles that served for all of it have no incidents in a row."""
        kept = {role: count for role, count in self.in_a_row.items() if role in self.recent}
        return replace(self, in_a_row=kept, recent=frozenset())

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
    """Limits of the recipe (``recovery.restarts``, ``backoff_seconds`` and ``backoff_limit_seconds``)."""

    restarts: int
    """Largest number of restarts of one command."""
    backoff_seconds: float
    """Wait before a role's second restart in a row; the first one is immediate."""
    backoff_limit_seconds: float
    """Longest wait."""

    def wait(self, history: History, role: str) -> float | None:
        """Seconds between the last incident and the restart of ``role``; None if the budget is spent.

        It is 0 for a role's first incident in a row, then ``backoff_seconds``, doubled with each further one.

        Args:
            history: including the incident that requires this restart.
        """
        if history.restarts > self.restarts:
            return None
        before = history.in_a_row.get(role, 0) - 1
        if before < 1:
            return 0.0
        return min(self.backoff_limit_seconds, self.backoff_seconds * 2.0 ** min(before - 1, DOUBLINGS))
