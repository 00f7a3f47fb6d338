"""The timeline of a stage: the controller's spans and those that its actors hand over, on one clock."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import ray

from actors.process import Whereabouts
from rlhf.tracking.spans import Span, Spans, Taken, boot
from rlhf.tracking.trace import CONTROLLER

EVERY_SECONDS = 1.0
"""Actors are not asked more often than that, however short the steps are."""
GLANCE_SECONDS = 0.5
"""What they answered is taken that often, or when a phase begins."""
LAST_SECONDS = 2.0
"""How long the end of a stage waits for what actors did last."""
REMEMBERED = 256
"""Steps of which late spans are still known to be."""

Actors = Mapping[str, tuple[Any, Whereabouts]]
"""By name: its handle, and where it is."""
Record = Callable[[str, str, Sequence[Span]], None]
"""Takes spans of a row within a group of rows, whose clock is ``time.time``."""


@dataclass(frozen=True, kw_only=True)
class Question:
    """An actor was asked for its spans, at ``asked`` of the controller's clock."""

    name: str
    where: Whereabouts
    asked: float

    @property
    def process(self) -> tuple[str, int]:
        """Node and process of the actor."""
        return self.where.node_id, self.where.process


def nowhere(group: str, row: str, spans: Sequence[Span]) -> None:
    """Where spans go that nobody wants to see."""


class Timeline:
    """Gathers spans, in passing: nobody waits for an actor here but the end of a stage, and that for a moment.

    Times are those of the controller's monotonic clock, counted from what the calendar was when the timeline began, so
    that nothing jumps where a clock is set. Spans that an actor had when it was lost are lost with it.
    """

    def __init__(self, spans: Spans | None = None, record: Record = nowhere) -> None:
        """Args: spans are the controller's own."""
        self.spans = spans or Spans()
        self._record = record
        self._calendar = time.time() - self.spans.clock()
        self._boot = boot()
        self._questions: dict[ray.ObjectRef, Question] = {}
        self._asked_at = self._took_at = float("-inf")
        self._ahead: dict[tuple[str, int], float] = {}
        """By node and process, how far its clock is ahead of the controller's, as far as is known."""
        self._steps: deque[tuple[float, int]] = deque(maxlen=REMEMBERED)

    def step(self, step: int, actors: Actors) -> None:
        """A step begins: what begins from now on is of it. The actors are asked what they did so far."""
        self._steps.append((self.spans.clock(), step))
        self.collect()
        if self.spans.clock() - self._asked_at >= EVERY_SECONDS:
            self._ask(actors)

    def glance(self) -> None:
        """Take what is there, if that was not done just now: for whoever is waiting anyway."""
        if self.spans.clock() - self._took_at >= GLANCE_SECONDS:
            self.collect()

    def collect(self, seconds: float = 0.0) -> None:
        """Take what is there, waiting so long at most."""
        self._took_at = self.spans.clock()
        self._put(CONTROLLER, CONTROLLER, self.spans.take().spans, 0.0)
        pending = list(self._questions)
        if not pending:
            return
        with suppress(Exception):  # whatever it is: a timeline is looked at, no run ends for want of it
            for ref in ray.wait(pending, num_returns=len(pending), timeout=seconds)[0]:
                question = self._questions.pop(ref)
                with suppress(Exception):  # the actor is gone
                    self._heard(question, ray.get(ref))

    def finish(self, actors: Actors) -> None:
        """Take what everybody did last."""
        self._ask(actors, also_who_owes=True)
        self.collect(LAST_SECONDS)
        self._questions.clear()

    def _ask(self, actors: Actors, also_who_owes: bool = False) -> None:
        """Ask what they did: those that answered the last time, or everybody."""
        self._asked_at = self.spans.clock()
        owing = {question.process for question in self._questions.values()}
        for name, (actor, where) in actors.items():
            question = Question(name=name, where=where, asked=self.spans.clock())
            if also_who_owes or question.process not in owing:
                with suppress(Exception):
                    self._questions[actor.spans.remote()] = question

    def _heard(self, question: Question, taken: Taken) -> None:
        ahead = self._clock_of(question, taken)
        if taken.dropped:
            lost = Span(name=f"{taken.dropped} spans dropped", begin=taken.now, end=taken.now)
            taken = replace(taken, spans=(*taken.spans, lost))
        self._put(f"node {question.where.node}", question.name, taken.spans, ahead)

    def _clock_of(self, question: Question, taken: Taken) -> float:
        """How far an actor's clock is ahead. On this machine not at all; elsewhere the least that was ever seen between
        question and answer, which is too much by the time that a question takes to get there."""
        if taken.boot and taken.boot == self._boot:
            return 0.0
        seen, process = taken.now - question.asked, question.process
        self._ahead[process] = min(seen, self._ahead.get(process, seen))
        return self._ahead[process]

    def _put(self, group: str, row: str, spans: Sequence[Span], ahead: float) -> None:
        if spans:
            self._record(group, row, [self._told(span, ahead) for span in spans])

    def _told(self, span: Span, ahead: float) -> Span:
        begin, end = span.begin - ahead, span.end - ahead
        step = self._step_at(begin) if span.step is None else span.step
        return replace(span, begin=begin + self._calendar, end=end + self._calendar, step=step)

    def _step_at(self, moment: float) -> int | None:
        """The step in which a moment lies; None before the first."""
        return next((step for begin, step in reversed(self._steps) if begin <= moment), None)
