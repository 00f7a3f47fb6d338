"""How long to wait for an answer: learned from how long answers have taken."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(kw_only=True)
class Deadlines:
    """Deadlines by phase, in seconds: min(ceiling, max(floor, factor · longest so far)).

    What has never been done may take the ceiling: nobody knows yet how long it takes.
    """

    floor: float
    """No answer is late before this (``recovery.stall_floor_seconds``)."""
    factor: float
    """Times the longest so far (``recovery.stall_factor``)."""
    ceiling: float
    """Every answer is late after this (``placement.phase_timeout_seconds``), the floor notwithstanding."""
    longest: dict[str, float] = field(default_factory=dict)
    """Longest seconds by phase."""

    def took(self, phase: str, seconds: float) -> None:
        """``phase`` has ended well after ``seconds``. One that failed teaches nothing."""
        self.longest[phase] = max(seconds, self.longest.get(phase, 0.0))

    def of(self, phase: str) -> float:
        """Seconds after which an answer in ``phase`` is late."""
        if phase not in self.longest:
            return self.ceiling
        return min(self.ceiling, max(self.floor, self.factor * self.longest[phase]))
