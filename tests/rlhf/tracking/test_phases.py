from __future__ import annotations

import pytest

from rlhf.tracking.phases import PhaseTimer


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_seconds_add_up_by_phase_and_step() -> None:
    clock = Clock()
    timer = PhaseTimer(clock)
    for phase, seconds in (("rollout", 2.0), ("update", 3.0), ("rollout", 0.5)):
        with timer(phase):
            clock.now += seconds
    assert timer.metrics() == {"time/rollout": 2.5, "time/update": 3.0}
    with timer("update"):
        clock.now += 1.0
    assert timer.metrics() == {"time/update": 1.0}
    assert timer.totals == {"rollout": 2.5, "update": 4.0}


def test_a_phase_that_raises_is_counted() -> None:
    clock = Clock()
    timer = PhaseTimer(clock)

    def fail() -> None:
        with timer("rollout"):
            clock.now += 1.5
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert timer.totals == {"rollout": 1.5}
