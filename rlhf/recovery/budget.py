"""How many restarts a run may have, and how long to wait before each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from rlhf.recovery.incident import Incident

DOUBLINGS = 64
"""Enough to reach any limit; a float could not hold more than a thousand."""


@dataclass(frozen=True, kw_only=True)
class History:
    """The incidents of a run, oldest first, and which roles die again and again."""

    incidents: tuple[Incident, ...] = ()
    restarts: int = 0
    """How often actors were restarted: roles that failed together were restarted once."""
    in_a_row: Mapping[str, int] = field(default_factory=dict)
    """By role, the incidents since it last served for a whole step."""
    recent: frozenset[str] = frozenset()
    """Roles with an incident since the last step ended: the step that ends next is not a whole one to them."""

    def after(self, *incidents: Incident) -> History:
        """With one restart more, for incidents that happened together, one a role."""
        roles = {incident.role for incident in incidents}
        return History(
            incidents=(*self.incidents, *incidents),
            restarts=self.restarts + 1,
            in_a_row={**self.in_a_row, **{role: self.in_a_row.get(role, 0) + 1 for role in roles}},
            recent=self.recent | roles,
        )

    def after_step(self) -> History:
        """A step has ended: who was there from its beginning starts with a clean sheet."""
        kept = {role: count for role, count in self.in_a_row.items() if role in self.recent}
        return replace(self, in_a_row=kept, recent=frozenset())

    def closed(self, member: str, seconds: float) -> History:
        """With what its last incident cost: a member serves again after so long. One that was only ended with a peer
        has none that is open."""
        places = [i for i, each in enumerate(self.incidents) if each.member == member and not each.seconds_lost]
        if not places:
            return self
        incidents = list(self.incidents)
        incidents[places[-1]] = replace(incidents[places[-1]], seconds_lost=seconds)
        return replace(self, incidents=tuple(incidents))

    def text(self) -> str:
        """One line an incident, for the error that ends a run."""
        return "\n".join(incident.row() for incident in self.incidents)


@dataclass(frozen=True, kw_only=True)
class Budget:
    """What a run bears (``recovery.restarts``, ``backoff_seconds`` and ``backoff_limit_seconds``)."""

    restarts: int
    """Restarts of one command; one more is over budget."""
    backoff_seconds: float
    """Wait before a role is restarted for the second time in a row; the first time there is none."""
    backoff_limit_seconds: float
    """Longest wait."""

    def wait(self, history: History, role: str) -> float | None:
        """Seconds between the last incident and the restart of ``role``; None where the budget is spent.

        It is 0 for the first incident of a role in a row, then ``backoff_seconds``, and doubles with each further one.

        Args:
            history: with the incident that asks for this restart.
        """
        if history.restarts > self.restarts:
            return None
        before = history.in_a_row.get(role, 0) - 1
        if before < 1:
            return 0.0
        return min(self.backoff_limit_seconds, self.backoff_seconds * 2.0 ** min(before - 1, DOUBLINGS))
