"""Bounds of a clock's skew, computed by hand."""

from __future__ import annotations

import pytest

from launch.doctor.clock import ClockReading, Skew, check_clock, skew


def test_readings_narrow_the_bounds() -> None:
    """Read 11.5 between 10 and 12: ahead by −0.5 to 1.5. Read 20.25 between 20 and 20.5: −0.25 to 0.25."""
    readings = [ClockReading(asked=10, there=11.5, heard=12), ClockReading(asked=20, there=20.25, heard=20.5)]
    assert skew(readings[:1]) == Skew(least=-0.5, most=1.5)
    assert skew(readings) == Skew(least=-0.25, most=0.25)


def test_a_clock_that_was_set_in_between_is_told_by_the_shortest_round_trip() -> None:
    readings = [ClockReading(asked=10, there=10.5, heard=11), ClockReading(asked=20, there=25.25, heard=20.5)]
    assert skew(readings) == Skew(least=4.75, most=5.25)


@pytest.mark.parametrize(
    ("least", "most", "certain", "status"),
    [
        (-0.001, 0.001, 0, "ok"),
        (-20, 20, 0, "ok"),
        (0.05, 0.06, 0.05, "ok"),
        (0.2, 0.3, 0.2, "warning"),
        (-0.3, -0.2, 0.2, "warning"),
        (-7, -6, 6, "failed"),
        (4.9, 9, 4.9, "warning"),
    ],
)
def test_only_what_the_round_trip_cannot_explain_counts(least: float, most: float, certain: float, status: str) -> None:
    facts = Skew(least=least, most=most)
    assert facts.certain == certain
    assert check_clock(facts).status == status


def test_what_is_said() -> None:
    assert check_clock(Skew(least=-0.002, most=0.003)).found == "+0.5 ms, give or take 2.5 ms"
