"""Tests of the bookkeeping of pending results, with references that become ready when the test says so."""

from __future__ import annotations

import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from actors import pending as pending_module
from actors.pending import Pending


class Ref:
    """A reference that Ray would call back for."""

    def __init__(self) -> None:
        self.call_back: Callable[[Any], None] | None = None
        self.registered = 0

    def _on_ready(self, call_back: Callable[[Any], None]) -> Callable[[], None]:
        self.call_back, self.registered = call_back, self.registered + 1
        return self.cancel

    def cancel(self) -> None:
        self.call_back = None

    def is_done(self) -> None:
        assert self.call_back is not None
        self.call_back(None)


@pytest.fixture
def seconds(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Lets so many seconds pass in the next wait, which ends at once."""
    steps: list[float] = []
    now = 0.0

    def monotonic() -> float:
        nonlocal now
        now += steps.pop() if steps else 0.0
        return now

    monkeypatch.setattr(pending_module, "time", SimpleNamespace(monotonic=monotonic))
    return lambda passed: steps.extend([passed, 0.0])


TEN: Callable[[str], float] = lambda name: 10.0  # noqa: E731


def test_results_are_taken_in_the_order_in_which_they_become_ready() -> None:
    first, second, third = refs = [Ref(), Ref(), Ref()]
    pending = Pending(dict.fromkeys(refs, "policy rank 0"))
    assert not pending.wait(0.0) and len(pending) == 3
    third.is_done()
    first.is_done()
    assert pending.wait(5.0)
    assert [pending.pop()[0], pending.pop()[0]] == [third, first]
    assert not pending.wait(0.0) and len(pending) == 1
    second.is_done()
    assert pending.wait(5.0) and pending.pop()[:2] == (second, "policy rank 0")
    assert len(pending) == 0


def test_each_reference_is_registered_once_however_often_one_waits() -> None:
    refs = [Ref() for _ in range(50)]
    pending = Pending({ref: f"policy rank {i % 5}" for i, ref in enumerate(refs)})
    for ref in refs:
        ref.is_done()
        assert pending.wait(1.0) and pending.pop()[0] is ref
    assert [ref.registered for ref in refs] == [1] * 50


def test_a_wait_ends_in_time() -> None:
    pending, begin = Pending({Ref(): "a"}), time.monotonic()
    assert not pending.wait(0.05)
    assert time.monotonic() - begin >= 0.05


def test_time_counts_since_an_actors_last_result(seconds: Callable[[float], None]) -> None:
    """Rank 0 answers after 3 s, rank 1 does not: after 10 s rank 1 is late, and rank 0 has 3 s left."""
    a, b, c = Ref(), Ref(), Ref()
    pending = Pending({a: "policy rank 0", b: "policy rank 1", c: "policy rank 0"})
    seconds(3.0)
    assert not pending.wait(0.0)
    a.is_done()
    assert pending.wait(0.0)
    assert pending.pop() == (a, "policy rank 0", 3.0)
    assert pending.seconds_left(TEN) == 7.0
    seconds(7.0)
    assert not pending.wait(0.0)
    assert pending.late(TEN) == ("policy rank 1",)
    pending.restart(["policy rank 1"])
    assert pending.late(TEN) == () and pending.seconds_left(TEN) == 3.0
    seconds(3.0)
    pending.wait(0.0)
    assert pending.late(TEN) == ("policy rank 0",)


def test_work_takes_until_its_result_is_ready_and_begins_with_the_request_or_the_last_result(
    seconds: Callable[[float], None],
) -> None:
    """Whatever the controller does meanwhile: rank 0 works 3 s on the first and 2 s on the second, taken 4 s later."""
    first, second = Ref(), Ref()
    pending = Pending(dict.fromkeys((first, second), "policy rank 0"))
    for ref, took in ((first, 3.0), (second, 2.0)):
        seconds(took)
        assert not pending.wait(0.0) or ref is second
        ref.is_done()
    seconds(4.0)
    assert pending.wait(0.0)
    assert [pending.pop()[2], pending.pop()[2]] == [3.0, 2.0]


def test_progress_counts_as_an_answer_up_to_a_limit(seconds: Callable[[float], None]) -> None:
    """All three are late after 10 s; rank 1 made progress 4 s ago, rank 2 one second ago."""
    names = [f"policy rank {rank}" for rank in range(3)]
    pending = Pending({Ref(): name for name in names})
    seconds(10.0)
    pending.wait(0.0)
    assert pending.late(TEN) == tuple(names)
    pending.count_progress({names[2]: 1.0, names[1]: 4.0, "critic rank 0": 0.0}, TEN, limit=14.0)
    assert pending.late(TEN) == (names[0],)
    pending.discard([key for key, each in pending._awaited.items() if each.name == names[0]])
    assert pending.seconds_left(TEN) == 4.0, "of rank 2 the limit, of rank 1 the limit too: 14 s after the request"
    seconds(4.0)
    pending.wait(0.0)
    pending.count_progress(dict.fromkeys(names[1:], 0.0), TEN, limit=14.0)
    assert pending.late(TEN) == tuple(names[1:])
    pending.restart(names)
    assert pending.seconds_left(TEN) == 10.0


def test_actors_stay_in_the_order_of_their_deadlines_when_some_made_progress(seconds: Callable[[float], None]) -> None:
    names = [f"policy rank {rank}" for rank in range(3)]
    pending = Pending({Ref(): name for name in names})
    seconds(10.0)
    pending.wait(0.0)
    pending.count_progress({names[0]: 1.0, names[1]: 6.0, names[2]: 3.0}, TEN, limit=99.0)
    left = []
    while len(pending):
        left.append(pending.seconds_left(TEN))
        seconds(left[-1])
        pending.wait(0.0)
        [late] = pending.late(TEN)
        pending.discard([key for key, each in pending._awaited.items() if each.name == late])
    assert left == [4.0, 3.0, 2.0]


def test_actors_with_equal_deadlines_are_late_together_and_one_with_a_ready_result_is_not(
    seconds: Callable[[float], None],
) -> None:
    refs = [Ref() for _ in range(4)]
    names = ["reward x rank 10", "reward x rank 9", "policy rank 0", "critic rank 0"]
    pending = Pending(dict(zip(refs, names, strict=True)))
    refs[1].is_done()
    seconds(10.0)
    assert pending.wait(0.0)
    long_for_the_critic: Callable[[str], float] = lambda name: 99.0 if "critic" in name else 10.0  # noqa: E731
    assert pending.late(long_for_the_critic) == ("policy rank 0", "reward x rank 10")


def test_a_result_added_later_has_all_its_time(seconds: Callable[[float], None]) -> None:
    pending = Pending({Ref(): "policy rank 0"})
    seconds(6.0)
    pending.wait(0.0)
    pending.add(Ref(), "policy rank 1")
    pending.add(Ref(), "policy rank 0")
    seconds(4.0)
    pending.wait(0.0)
    assert pending.late(TEN) == ("policy rank 0",), "another request does not make up for the one that it owes"


def test_what_is_discarded_is_neither_returned_nor_late(seconds: Callable[[float], None]) -> None:
    done, open_, kept = Ref(), Ref(), Ref()
    pending = Pending({done: "policy rank 0", open_: "policy rank 0", kept: "policy rank 1"})
    done.is_done()
    assert pending.wait(0.0)
    called_back = open_.call_back
    pending.discard([done, open_, Ref()])
    assert called_back is not None and open_.call_back is None, "Ray is told"
    called_back(None)  # it was on its way
    seconds(10.0)
    assert not pending.wait(0.0)
    assert pending.late(TEN) == ("policy rank 1",) and len(pending) == 1


def test_replace_keeps_what_is_in_both(seconds: Callable[[float], None]) -> None:
    old, both, new = Ref(), Ref(), Ref()
    pending = Pending({old: "rollout engine 0", both: "rollout engine 1"})
    seconds(6.0)
    pending.wait(0.0)
    pending.replace({both: "rollout engine 1", new: "rollout engine 0"})
    assert both.registered == 1 and new.registered == 1 and old.call_back is None
    seconds(4.0)
    pending.wait(0.0)
    assert pending.late(TEN) == ("rollout engine 1",)
