from __future__ import annotations

import pytest

from rlhf.tracking.spans import PhaseTimer, Spans


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_a_block_is_recorded_also_where_it_raises() -> None:
    clock = Clock()
    spans = Spans(clock)

    def fail() -> None:
        with spans("update", 3):
            clock.now += 2.0
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    begin = clock.now
    clock.now += 0.5
    spans.add("block", begin, samples=8)
    taken = spans.take()
    assert [(span.name, span.begin, span.end, span.step) for span in taken.spans] == [
        ("update", 100.0, 102.0, 3),
        ("block", 102.0, 102.5, None),
    ]
    assert taken.spans[1].details == {"samples": 8}
    assert (taken.now, taken.dropped) == (102.5, 0)
    assert spans.take().spans == ()


def test_memory_is_bounded_and_what_is_lost_is_counted() -> None:
    spans = Spans(Clock(), most=3)
    for k in range(5):
        spans.add(f"call {k}", 0.0)
    taken = spans.take()
    assert [span.name for span in taken.spans] == ["call 2", "call 3", "call 4"]
    assert taken.dropped == 2
    assert spans.take().dropped == 0


def test_processes_of_one_machine_have_their_clock_in_common() -> None:
    assert Spans().take().boot == Spans().take().boot


class StoppedClock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_seconds_add_up_by_phase_and_step() -> None:
    clock = StoppedClock()
    timer = PhaseTimer(clock)
    for phase, seconds in (("rollout", 2.0), ("update", 3.0), ("rollout", 0.5)):
        with timer(phase):
            clock.now += seconds
    assert timer.metrics() == {"time/rollout": 2.5, "time/update": 3.0}
    with timer("update"):
        clock.now += 1.0
    assert timer.metrics() == {"time/update": 1.0}
    assert timer.totals == {"rollout": 2.5, "update": 4.0}


def test_seconds_since_an_earlier_time_are_added() -> None:
    clock = StoppedClock()
    clock.now = 3.0
    timer = PhaseTimer(clock)
    clock.now = 10.0
    timer.add("start", timer.created)
    timer.add("other", 9.5)
    assert timer.metrics() == {"time/start": 7.0, "time/other": 0.5}


def test_a_phase_that_raises_is_counted() -> None:
    clock = StoppedClock()
    timer = PhaseTimer(clock)

    def fail() -> None:
        with timer("rollout"):
            clock.now += 1.5
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert timer.totals == {"rollout": 1.5}
