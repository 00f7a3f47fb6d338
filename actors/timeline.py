"""The timeline of a stage: collects the spans of the controller and of all actors, on one clock."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import ray

from actors.process import ProcessLocation
from rlhf.tracking.spans import Span, Spans, Taken, boot
from rlhf.tracking.trace import CONTROLLER

EVERY_SECONDS = 1.0
"""Shortest interval between requests to the actors, however short the steps are."""
POLL_SECONDS = 0.5
"""Interval at which answers are collected during waits; they are also collected when a phase begins."""
LAST_SECONDS = 2.0
"""How long the end of a stage waits for the actors' last spans."""
REMEMBERED = 256
"""Number of past steps to which late spans can still be attributed."""

Actors = Mapping[str, tuple[Any, ProcessLocation]]
"""Handle and location of each actor, by name."""
Record = Callable[[str, str, Sequence[Span]], None]
"""Function that records spans; its arguments are the group of rows, the row, and the spans with times of
``time.time``."""


@dataclass(frozen=True, kw_only=True)
class SpanRequest:
    """A request for an actor's spans, sent at ``asked`` of the controller's clock."""

    name: str
    where: ProcessLocation
    asked: float

    @property
    def process(self) -> tuple[str, int]:
        """Node and process of the actor."""
        return self.where.node_id, self.where.process


def discard_spans(group: str, row: str, spans: Sequence[Span]) -> None:
    """Discard spans: the default ``Record``."""


class TimelineCollector:
    """Collects spans without waiting for actors, except ``LAST_SECONDS`` at the end of a stage.

    Times are the controller's monotonic clock plus the wall-clock time at its start, so that wall-clock adjustments do
    not shift spans. The pending spans of an actor are lost if it fails.
    """

    def __init__(self, spans: Spans | None = None, record: Record = discard_spans) -> None:
        """Begin an empty timeline.

        Args:
            spans: the controller's.
            record: receives the collected spans; by default they are discarded.
        """
        self.spans = spans or Spans()
        self._record = record
        self._calendar = time.time() - self.spans.clock()
        self._boot = boot()
        self._requests: dict[ray.ObjectRef, SpanRequest] = {}
        self._asked_at = self._took_at = float("-inf")
        self._ahead: dict[tuple[str, int], float] = {}
        """Smallest observed lead of a process's clock over the controller's, by node and process."""
        self._steps: deque[tuple[float, int]] = deque(maxlen=REMEMBERED)

    def step(self, step: int, actors: Actors) -> None:
        """Begin a step, to which later spans belong, and request the actors' spans."""
        self._steps.append((self.spans.clock(), step))
        self.collect()
        if self.spans.clock() - self._asked_at >= EVERY_SECONDS:
            self._ask(actors)

    def poll(self) -> None:
        """Collect spans, at most every ``POLL_SECONDS``; called during waits."""
        if self.spans.clock() - self._took_at >= POLL_SECONDS:
            self.collect()

    def collect(self, seconds: float = 0.0) -> None:
        """Collect the controller's spans, and the answers that arrive within ``seconds``."""
        self._took_at = self.spans.clock()
        self._record_spans(CONTROLLER, CONTROLLER, self.spans.take().spans, 0.0)
        pending = list(self._requests)
        if not pending:
            return
        with suppress(Exception):  # the timeline is informative: no failure here may end the run
            for ref in ray.wait(pending, num_returns=len(pending), timeout=seconds)[0]:
                request = self._requests.pop(ref)
                with suppress(Exception):  # the actor is gone
                    self._store_answer(request, ray.get(ref))

    def finish(self, actors: Actors) -> None:
        """Request and collect the last spans of all actors."""
        self._ask(actors, also_pending=True)
        self.collect(LAST_SECONDS)
        self._requests.clear()

    def _ask(self, actors: Actors, also_pending: bool = False) -> None:
        """Request spans of actors without a pending request, or of all."""
        self._asked_at = self.spans.clock()
        pending = {request.process for request in self._requests.values()}
        for name, (actor, where) in actors.items():
            request = SpanRequest(name=name, where=where, asked=self.spans.clock())
            if also_pending or request.process not in pending:
                with suppress(Exception):
                    self._requests[actor.spans.remote()] = request

    def _store_answer(self, request: SpanRequest, taken: Taken) -> None:
        ahead = self._clock_offset(request, taken)
        if taken.dropped:
            lost = Span(name=f"{taken.dropped} spans dropped", begin=taken.now, end=taken.now)
            taken = replace(taken, spans=(*taken.spans, lost))
        self._record_spans(f"node {request.where.node}", request.name, taken.spans, ahead)

    def _clock_offset(self, request: SpanRequest, taken: Taken) -> float:
        """Lead of an actor's clock over the controller's: 0 on this host.

        On other hosts it is estimated as the minimum of (answer time − request time), which overestimates by the
        latency.
        """
        if taken.boot and taken.boot == self._boot:
            return 0.0
        seen, process = taken.now - request.asked, request.process
        self._ahead[process] = min(seen, self._ahead.get(process, seen))
        return self._ahead[process]

    def _record_spans(self, group: str, row: str, spans: Sequence[Span], ahead: float) -> None:
        if spans:
            self._record(group, row, [self._on_calendar(span, ahead) for span in spans])

    def _on_calendar(self, span: Span, ahead: float) -> Span:
        begin, end = span.begin - ahead, span.end - ahead
        step = span.step
        if step is None:  # the last step that began before it; None before the first step
            step = next((step for since, step in reversed(self._steps) if since <= begin), None)
        return replace(span, begin=begin + self._calendar, end=end + self._calendar, step=step)
