"""Clock skew, with its error: a remote clock was read somewhere between asking and hearing, and no better is known."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from launch.doctor.findings import Finding, failed, ok, warning

NOTICEABLE = 0.1
"""Seconds from which rows of a timeline, and events of two nodes, come in the wrong order."""
WRONG = 5.0
"""Seconds from which files seem to be older than they are, and credentials with a time in them are refused."""


@dataclass(frozen=True, kw_only=True)
class ClockReading:
    """A remote clock, and this machine's before and after; all in seconds since the epoch."""

    asked: float
    there: float
    heard: float


@dataclass(frozen=True, kw_only=True)
class Skew:
    """By how many seconds a clock is ahead of this machine's: at least, and at most."""

    least: float
    most: float

    @property
    def certain(self) -> float:
        """The part of the skew that the round trip cannot explain."""
        return 0.0 if self.least <= 0 <= self.most else min(abs(self.least), abs(self.most))


def skew(readings: Iterable[ClockReading]) -> Skew:
    """What several readings leave possible together: the narrowest bounds.

    A clock that was set in between leaves nothing possible; the reading with the shortest round trip then decides.

    Raises:
        ValueError: there is no reading.
    """
    bounds = [Skew(least=each.there - each.heard, most=each.there - each.asked) for each in readings]
    least, most = max(each.least for each in bounds), min(each.most for each in bounds)
    return Skew(least=least, most=most) if least <= most else min(bounds, key=lambda each: each.most - each.least)


def check_clock(facts: Skew) -> Finding:
    """The clock of a node agrees with this machine's."""
    middle, half = (facts.least + facts.most) / 2, (facts.most - facts.least) / 2
    found = f"{middle * 1e3:+.1f} ms, give or take {half * 1e3:.1f} ms"
    fix = "run chrony or systemd-timesyncd on every node, against the same server"
    if facts.certain >= WRONG:
        return failed(f"{middle:+.1f} s, give or take {half:.1f} s", fix)
    return warning(found, fix) if facts.certain >= NOTICEABLE else ok(found)
