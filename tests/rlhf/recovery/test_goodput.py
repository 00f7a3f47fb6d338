"""Tests of a run's time account, computed by hand."""

from __future__ import annotations

import json
from contextlib import suppress

import pytest

from rlhf.recovery.goodput import Goodput


class Clock:
    """A clock that is set by hand."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def test_time_in_kept_steps_over_all_time(clock: Clock) -> None:
    goodput = Goodput(clock)
    assert goodput.metrics()["perf/goodput"] == 0.0
    clock.now = 1020.0  # 20 s to start
    goodput.step(0, 30.0)
    goodput.step(1, 30.0)
    clock.now = 1080.0
    assert goodput.metrics() == {
        "perf/goodput": 0.75,
        "health/restarts": 0.0,
        "health/redispatched": 0.0,
        "health/set_aside": 0.0,
        "health/seconds_lost": 0.0,
    }


def test_a_step_that_is_done_again_counts_once(clock: Clock) -> None:
    goodput = Goodput(clock)
    for step, seconds in ((0, 10.0), (1, 10.0), (2, 12.0), (1, 9.0), (2, 11.0)):
        goodput.step(step, seconds)
    clock.now += 60.0
    assert goodput.useful == 30.0  # 10 + 9 + 11
    assert goodput.lost_by_kind == {"replayed": 22.0}
    assert goodput.metrics()["perf/goodput"] == 0.5


def test_what_was_lost_is_told_by_kind_and_counted(clock: Clock) -> None:
    goodput = Goodput(clock)
    goodput.lost("stalled", 15.0)
    goodput.lost("stalled", 10.0)
    goodput.lost("died", 5.0)
    goodput.restarts, goodput.redispatched, goodput.set_aside = 2, 19, 1
    clock.now += 100.0
    goodput.step(0, 40.0)
    assert goodput.lost_by_kind == {"stalled": 25.0, "died": 5.0}
    assert goodput.metrics() == {
        "perf/goodput": 0.4,
        "health/restarts": 2.0,
        "health/redispatched": 19.0,
        "health/set_aside": 1.0,
        "health/seconds_lost": 30.0,
    }


def test_a_wait_within_a_wait_is_counted_once(clock: Clock) -> None:
    goodput = Goodput(clock)
    with goodput.waiting("died"):
        clock.now += 10.0
        with suppress(KeyError), goodput.waiting("stalled"):
            clock.now += 20.0
            raise KeyError
        clock.now += 5.0
    assert goodput.lost_by_kind == {"died": 15.0, "stalled": 20.0}
    assert goodput.seconds_lost == 35.0


def test_no_step_takes_less_than_nothing(clock: Clock) -> None:
    goodput = Goodput(clock)
    goodput.step(0, 10.0)
    goodput.step(1, -4.0)
    assert goodput.useful == 10.0


def resumed(clock: Clock, last_seen: float | None) -> Goodput:
    """Steps 0 and 1 by 1040, a checkpoint there, step 2 by 1060, the end; the next command at 1100, step 2 by 1120."""
    first = Goodput(clock)
    first.step(0, 15.0)
    first.step(1, 15.0)
    first.restarts, first.redispatched, first.set_aside = 1, 2, 3
    clock.now = 1040.0
    state = json.loads(json.dumps(first.state()))
    first.step(2, 20.0)
    clock.now = 1100.0
    second = Goodput.resumed(state, clock, last_seen)
    second.step(2, 20.0)
    clock.now = 1120.0
    return second


def test_an_account_goes_on_over_commands(clock: Clock) -> None:
    goodput = resumed(clock, last_seen=1060.0)
    assert (goodput.useful, goodput.wall) == (50.0, 120.0)
    assert goodput.lost_by_kind == {"replayed": 20.0, "down": 40.0}
    assert goodput.metrics() == {
        "perf/goodput": 50.0 / 120.0,
        "health/restarts": 1.0,
        "health/redispatched": 2.0,
        "health/set_aside": 3.0,
        "health/seconds_lost": 60.0,
    }


def test_without_a_last_sign_of_life_all_that_time_was_down(clock: Clock) -> None:
    assert resumed(clock, last_seen=None).lost_by_kind == {"down": 60.0}


def test_a_second_resumption_adds_to_the_first(clock: Clock) -> None:
    second = resumed(clock, last_seen=None)
    state = second.state()
    clock.now = 1150.0
    third = Goodput.resumed(state, clock)
    assert (third.useful, third.wall, third.lost_by_kind) == (50.0, 150.0, {"down": 90.0})


@pytest.mark.parametrize("last_seen", [900.0, 5000.0])
def test_clocks_that_disagree_make_nothing_negative(clock: Clock, last_seen: float) -> None:
    goodput = resumed(clock, last_seen)
    assert sum(goodput.lost_by_kind.values()) == 60.0
    assert min(goodput.lost_by_kind.values()) > 0.0
    clock.now = 1001.0  # set back
    assert goodput.metrics()["perf/goodput"] == 1.0
    clock.now = 900.0  # before the run began
    assert goodput.metrics()["perf/goodput"] == 1.0
    goodput.lost("down", 1e9)  # by a clock that was far ahead until it was set right
    clock.now = 1200.0
    assert goodput.metrics()["perf/goodput"] == 50.0 / 200.0


def test_the_state_is_that_of_its_moment(clock: Clock) -> None:
    goodput = Goodput(clock)
    goodput.lost("died", 1.0)
    clock.now = 1010.0
    state = goodput.state()
    goodput.lost("died", 1.0)
    assert state == {
        "began": 1000.0,
        "wall": 10.0,
        "useful": 0.0,
        "lost_by_kind": {"died": 1.0},
        "restarts": 0,
        "redispatched": 0,
        "set_aside": 0,
    }
