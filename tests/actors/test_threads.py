"""Tests of calls in threads, some of which hang: real threads, and a deadline for all."""

from __future__ import annotations

import threading
import time

from actors.threads import call_each


def test_results_come_by_index_and_failures_have_none() -> None:
    assert call_each(lambda x: 12 // x, [1, 0, 3], 5.0) == {0: 12, 2: 4}
    assert call_each(lambda x: x, [], 5.0) == {}


def test_calls_that_hang_cost_the_deadline_once_and_the_others_nothing() -> None:
    release, begun = threading.Event(), list[int]()

    def call(index: int) -> int:
        begun.append(index)
        if index < 3:
            release.wait(30)
        return index

    begin = time.monotonic()
    assert call_each(call, range(20), 0.5, threads=4) == {index: index for index in range(3, 20)}
    assert 0.4 < time.monotonic() - begin < 5
    assert all(thread.daemon for thread in threading.enumerate() if thread is not threading.main_thread())
    begun.clear()
    assert call_each(call, [0, 0, 1, 2, 5, 6], 0.2, threads=4) == {}, "all four threads hang"
    release.set()
    time.sleep(0.2)
    assert sorted(begun) == [0, 0, 1, 2], "what had not begun by then is not begun later"


def test_a_bounded_number_runs_at_once() -> None:
    running, most, lock = 0, 0, threading.Lock()

    def call(_: int) -> None:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        time.sleep(0.02)
        with lock:
            running -= 1

    call_each(call, range(12), 5.0, threads=3)
    assert most == 3
