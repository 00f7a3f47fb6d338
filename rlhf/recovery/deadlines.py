"""How long to wait for an answer: learned from how long answers have taken."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True)
class Work:
    """One kind of work of one role. Other roles, and other work in the same phase, take other times."""

    role: str
    """``policy``, ``rollout``; see ``rlhf.recovery.member.role_of``."""
    kind: str
    """``update``, ``sleep``."""


@dataclass(kw_only=True)
class Deadlines:
    """Deadlines by work, in seconds: min(ceiling, max(floor, factor · longest so far)).

    Work that has never been finished may take the ceiling: nobody knows yet how long it takes.
    """

    floor: float
    """No answer is late before this (``recovery.stall_floor_seconds``)."""
    factor: float
    """Times the longest so far (``recovery.stall_factor``)."""
    ceiling: float
    """Every answer is late after this (``placement.phase_timeout_seconds``), the floor notwithstanding."""
    longest: dict[Work, float] = field(default_factory=dict)
    """Longest seconds by work."""

    def took(self, work: Work, seconds: float) -> None:
        """``work`` has ended well after ``seconds``. Work that failed teaches nothing."""
        self.longest[work] = max(seconds, self.longest.get(work, 0.0))

    def of(self, work: Work) -> float:
        """Seconds after which an answer to ``work`` is late."""
        if work not in self.longest:
            return self.ceiling
        return min(self.ceiling, max(self.floor, self.factor * self.longest[work]))

    @property
    def shortest(self) -> float:
        """Deadline of work that computes nothing."""
        return min(self.ceiling, self.floor)
