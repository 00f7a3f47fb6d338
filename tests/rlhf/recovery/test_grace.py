"""Tests of the comparison of a checkpoint's duration with the time that a stop has."""

from __future__ import annotations

from rlhf.recovery.grace import GracePeriod


def test_a_stop_may_wait_for_two_checkpoints() -> None:
    """The one that is being written when the request comes, and then its own."""
    period = GracePeriod(grace_seconds=120.0)
    assert period.shortfall(60.0, "measured") is None
    text = period.shortfall(61.0, "measured after step 3")
    assert text is not None
    assert "takes 61 s (measured after step 3)" in text and "122 s, longer than checkpoint.grace_seconds = 120" in text
    assert "Raise checkpoint.grace_seconds," in text


def test_the_same_is_reported_once_and_again_when_it_has_become_worse() -> None:
    period = GracePeriod(grace_seconds=120.0)
    reported = [period.shortfall(seconds, "measured") is not None for seconds in (80, 80, 99, 101, 101, 126, 127)]
    assert reported == [True, False, False, True, False, False, True]


def test_what_fits_again_is_reported_when_it_does_not() -> None:
    period = GracePeriod(grace_seconds=120.0)
    reported = [period.shortfall(seconds, "measured") is not None for seconds in (80, 30, 80)]
    assert reported == [True, False, True]


def test_with_a_time_limit_the_time_before_it_counts_too() -> None:
    """A stop before the limit has that time, one by a signal the grace period."""
    period = GracePeriod(grace_seconds=120.0, before_deadline=100.0)
    text = period.shortfall(55.0, "measured")
    assert text is not None and "longer than checkpoint.before_deadline = 100." in text
    assert "grace_seconds" not in text
    text = period.shortfall(90.0, "measured")
    assert text is not None
    assert "longer than checkpoint.grace_seconds = 120 and checkpoint.before_deadline = 100." in text
