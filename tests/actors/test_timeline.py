"""Tests of the timeline with a real Ray: spans are on the controller's clock, by step, and never waited for."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import ray

from actors.process import ProcessLocation
from actors.timeline import TimelineCollector
from actors.worker import HEARTBEAT, Worker
from rlhf.tracking.spans import Span, Spans, Taken

AHEAD = 5000.0
"""Seconds by which the other machine's clock is ahead."""


class Held:
    """What the worker holds in these tests."""

    def work(self, seconds: float) -> None:
        time.sleep(seconds)


class Elsewhere:
    """An actor of another machine, whose clock shows another time."""

    def __init__(self) -> None:
        self._spans = Spans(lambda: time.monotonic() + AHEAD)

    def work(self, seconds: float) -> None:
        with self._spans("work"):
            time.sleep(seconds)

    def spans(self) -> Taken:
        taken = self._spans.take()
        return Taken(spans=taken.spans, now=taken.now, boot="another start of another machine")


class Board:
    """Records the timeline's spans."""

    def __init__(self) -> None:
        self.rows: dict[tuple[str, str], list[Span]] = {}

    def __call__(self, group: str, row: str, spans: Sequence[Span]) -> None:
        self.rows.setdefault((group, row), []).extend(spans)


def at(name: str) -> ProcessLocation:
    return ProcessLocation(name=name, node="10.0.0.2", node_id="abc", process=hash(name))


@pytest.fixture
def worker(local_ray: None, tmp_path: Path) -> Iterator[Any]:
    actor = ray.remote(concurrency_groups={HEARTBEAT: 1})(Worker).remote("policy rank 0", tmp_path / "log")
    ray.get(actor.build.remote(Held))
    yield actor
    ray.kill(actor)


def test_an_actor_is_busy_where_its_call_was(worker: Any) -> None:
    board, actors = Board(), {"policy rank 0": (worker, at("policy rank 0"))}
    timeline = TimelineCollector(record=board)
    timeline.step(4, actors)
    begin = time.time()
    with timeline.spans("update", 4):
        ray.get(worker.call.remote("work", 0.3))
    end = time.time()
    timeline.finish(actors)
    (phase,) = board.rows["controller", "controller"]
    start, work = board.rows["node 10.0.0.2", "policy rank 0"]
    assert (start.name, start.step, work.name, work.step) == ("start", None, "work", 4)
    assert 0.3 <= work.end - work.begin < 0.6
    assert begin - 0.05 <= phase.begin <= work.begin <= work.end <= phase.end <= end + 0.05


def test_the_clock_of_another_machine_is_brought_into_line(local_ray: None) -> None:
    actor = ray.remote(Elsewhere).remote()
    ray.get(actor.spans.remote())  # it has started
    board, actors = Board(), {"far rank 0": (actor, at("far rank 0"))}
    timeline = TimelineCollector(record=board)
    timeline.step(0, actors)
    timeline.collect(seconds=5.0)
    begin = time.time()
    ray.get(actor.work.remote(0.2))
    end = time.time()
    timeline.finish(actors)
    (work,) = board.rows["node 10.0.0.2", "far rank 0"]
    assert begin - 0.1 <= work.begin <= work.end <= end + 0.1
    assert work.step == 0
    ray.kill(actor)


def test_who_is_dead_or_silent_holds_nobody_up(worker: Any, local_ray: None) -> None:
    dead = ray.remote(Elsewhere).remote()
    ray.get(dead.spans.remote())
    ray.kill(dead)
    busy = ray.remote(Elsewhere).remote()
    busy.work.remote(30.0)  # it has no thread of its own for questions
    board = Board()
    actors = {
        "dead rank 0": (dead, at("dead rank 0")),
        "busy rank 0": (busy, at("busy rank 0")),
        "policy rank 0": (worker, at("policy rank 0")),
    }
    timeline = TimelineCollector(record=board)
    timeline.step(0, actors)
    timeline.step(1, actors)
    timeline.finish(actors)
    assert set(board.rows) == {("node 10.0.0.2", "policy rank 0")}
    ray.kill(busy)


def test_a_worker_answers_while_it_computes(worker: Any) -> None:
    call = worker.call.remote("work", 20.0)
    assert [span.name for span in ray.get(worker.spans.remote(), timeout=10.0).spans] == ["start"]
    assert not ray.wait([call], timeout=0)[0]


def test_late_spans_are_of_the_step_in_which_they_began() -> None:
    now = [100.0]
    board = Board()
    timeline = TimelineCollector(Spans(lambda: now[0]), record=board)
    for step, begin in ((7, 100.0), (8, 110.0), (7, 120.0)):  # step 7 is done again
        now[0] = begin
        timeline.step(step, {})
    now[0] = 130.0
    for begin in (99.0, 105.0, 110.0, 119.0, 125.0):
        timeline.spans.add("call", begin)
    timeline.collect()
    assert [span.step for span in board.rows["controller", "controller"]] == [None, 7, 8, 8, 7]
