"""Tests of waits that are ended from outside: after a limit, on demand, or never."""

from __future__ import annotations

import threading
import time

import pytest

from rlhf.weights.aborts import ABORTED, Watchdog, at_fault, call_within


def test_a_watchdog_ends_a_wait_after_its_limit_and_says_so() -> None:
    event = threading.Event()
    with Watchdog(0.05, event.set) as watchdog:
        assert event.wait(10)
    assert watchdog.reason == "no end within 0 s"


def test_it_fires_once_for_the_first_reason_and_not_after_its_end() -> None:
    fired = list[str]()
    with Watchdog(60, lambda: fired.append("now")) as watchdog:
        assert watchdog.reason == ""
        watchdog.fire("an engine died")
        watchdog.fire("another one too")
    watchdog.fire("late")
    assert (fired, watchdog.reason) == (["now"], "an engine died")
    with Watchdog(0.01, lambda: fired.append("after")) as quick:
        pass
    quick.fire("late")
    time.sleep(0.05)
    assert (fired, quick.reason) == (["now"], "")


def test_on_leaving_the_abort_is_complete() -> None:
    """Otherwise the next transfer could meet it."""
    began, done = threading.Event(), list[str]()

    def abort() -> None:
        began.set()
        time.sleep(0.2)
        done.append("aborted")

    with Watchdog(0.01, abort):
        assert began.wait(10)
    assert done == ["aborted"]


def test_a_call_gives_its_result_or_its_error() -> None:
    assert call_within(10, lambda: 7) == 7
    with pytest.raises(ValueError, match="of its own"):
        call_within(10, lambda: (_ for _ in ()).throw(ValueError("of its own")))


def test_a_call_that_hangs_is_left_behind() -> None:
    event, begun = threading.Event(), time.monotonic()
    with pytest.raises(TimeoutError, match="no end within 0 s"):
        call_within(0.05, event.wait)
    with pytest.raises(TimeoutError, match="cannot succeed"):
        call_within(60, event.wait, lambda: True)
    assert time.monotonic() - begun < 10
    event.set()


def test_engines_that_waited_for_another_one_are_not_at_fault() -> None:
    assert at_fault({"a": ABORTED, "b": "died", "c": "stalled"}) == {"b": "died", "c": "stalled"}
    assert at_fault({}) == {}


def test_where_nobody_is_known_to_have_failed_all_are_replaced() -> None:
    """A transfer that is repeated to the same engines could hang for ever, and no restart would be counted."""
    assert at_fault({"a": ABORTED, "b": ABORTED}) == {"a": "stalled", "b": "stalled"}
