"""Deadlines for actors' answers, learned from the durations of earlier ones."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True)
class Work:
    """One kind of work of one role; each has separate deadlines."""

    role: str
    """``policy`` or ``rollout``, for example; see ``rlhf.recovery.member.role_of``."""
    kind: str
    """``update`` or ``sleep``, for example."""


@dataclass(kw_only=True)
class Deadlines:
    """Deadlines by work, in seconds: min(ceiling, max(floor, factor · longest duration so far)).

    Work that has never been completed gets the ceiling.
    """

    floor: float
    """Shortest deadline (``recovery.stall_floor_seconds``), unless the ceiling is shorter."""
    factor: float
    """Multiple of the longest duration so far (``recovery.stall_factor``)."""
    ceiling: float
    """Longest deadline (``placement.phase_timeout_seconds``)."""
    longest: dict[Work, float] = field(default_factory=dict)
    """Longest duration of each kind of work, in seconds."""

    def took(self, work: Work, seconds: float) -> None:
        """Record that ``work`` was completed after ``seconds``; failed work is not recorded."""
        self.longest[work] = max(seconds, self.longest.get(work, 0.0))

    def of(self, work: Work) -> float:
        """Deadline of ``work``, in seconds."""
        if work not in self.longest:
            return self.ceiling
        return min(self.ceiling, max(self.floor, self.factor * self.longest[work]))

    @property
    def shortest(self) -> float:
        """Deadline of work that computes nothing."""
        return min(self.ceiling, self.floor)
