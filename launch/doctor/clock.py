"""Clock skew between nodes, with its error: a remote clock is read at some time between request and reply."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from launch.doctor.findings import Finding, failed, ok, warning

NOTICEABLE = 0.1
"""Skew in seconds from which timeline rows and events of two nodes are out of order."""
WRONG = 5.0
"""Skew in seconds from which files appear older than they are, and credentials with timestamps are refused."""


@dataclass(frozen=True, kw_only=True)
class ClockReading:
    """A reading of a remote clock, and of this machine's clock before and after it, in seconds since the epoch."""

    asked: float
    there: float
    heard: float


@dataclass(frozen=True, kw_only=True)
class Skew:
    """Lower and upper bound, in seconds, by which a clock is ahead of this machine's."""

    least: float
    most: float

    @property
    def certain(self) -> float:
        """The part of the skew that the round trip cannot explain."""
        return 0.0 if self.least <= 0 <= self.most else min(abs(self.least), abs(self.most))


def skew(readings: Iterable[ClockReading]) -> Skew:
    """Combine several readings to the narrowest bounds.

    If a clock was set in between, no bounds are consistent; then the reading with the shortest round trip decides.

    Raises:
        ValueError: there are no readings.
    """
    bounds = [Skew(least=each.there - each.heard, most=each.there - each.asked) for each in readings]
    least, most = max(each.least for each in bounds), min(each.most for each in bounds)
    return Skew(least=least, most=most) if least <= most else min(bounds, key=lambda each: each.most - each.least)


def check_clock(facts: Skew) -> Finding:
    """Check that a node's clock agrees with this machine's."""
    middle, half = (facts.least + facts.most) / 2, (facts.most - facts.least) / 2
    found = f"{middle * 1e3:+.1f} ms, give or take {half * 1e3:.1f} ms"
    fix = "run chrony or systemd-timesyncd on every node, against the same server"
    if facts.certain >= WRONG:
        return failed(f"{middle:+.1f} s, give or take {half:.1f} s", fix)
    return warning(found, fix) if facts.certain >= NOTICEABLE else ok(found)
