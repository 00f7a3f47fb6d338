"""What the timeline says of a stage: who was busy in which part of every step, and what the last steps looked like."""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeGuard

from rlhf.tracking.trace import CONTROLLER, Event, read_trace

STEP = "step"
DEEPEST = 8
"""How many phases before a moment are looked at for one that is around it: they are hardly nested."""
MOST_TIME = 1e17
"""In microseconds since 1970, some thousand years from now."""
_SECOND_ROW = re.compile(r" \(\d+\)$")  # what overlapped another span of the same actor

Interval = tuple[float, float]
"""(begin, end) in seconds."""


@dataclass(frozen=True, kw_only=True)
class Bar:
    """Something that was done."""

    name: str
    begin: float
    end: float


@dataclass(frozen=True, kw_only=True)
class Timeline:
    """The newest file of a stage's timeline."""

    steps: Mapping[int, Interval]
    """Of each step, where it was done last."""
    phases: Sequence[Bar]
    """The controller's, by their beginning."""
    actors: Mapping[str, Sequence[Bar]]
    """What each actor did, by its beginning."""
    older: int = 0
    """Files that were put aside before."""

    def busy(self, actor: str) -> dict[int, float]:
        """By step, the share of it in which the actor was busy, 0 to 1."""
        work = united((bar.begin, bar.end) for bar in self.actors[actor])
        return {step: _covered(work, window) / (window[1] - window[0]) for step, window in self.steps.items()}

    def bubbles(self, actor: str) -> list[tuple[float, int, str]]:
        """The stretches in which an actor had nothing to do: (seconds, step, the phase at its middle)."""
        work = united((bar.begin, bar.end) for bar in self.actors[actor])
        begins = [bar.begin for bar in self.phases]
        found = []
        for step, window in self.steps.items():
            for begin, end in _gaps(work, window):
                middle = (begin + end) / 2
                found.append((end - begin, step, self._phase_at(middle, bisect_right(begins, middle))))
        return found

    def _phase_at(self, moment: float, after: int) -> str:
        """The innermost phase around a moment; phases from ``after`` on begin later."""
        near = reversed(self.phases[max(0, after - DEEPEST) : after])
        return next((bar.name for bar in near if moment <= bar.end), "between phases")


def read_timeline(path: Path) -> Timeline | None:
    """The timeline in ``trace.json``, whole or not; None where there is none with a step in it."""
    rows: dict[str, str] = {}
    slices: defaultdict[str, list[Bar]] = defaultdict(list)
    steps: dict[int, Interval] = {}
    for event in read_trace(path):
        row = str(event.get("tid"))
        if event.get("name") == "thread_name":
            rows[row] = str(_args(event).get("name"))
        elif (bar := _bar(event)) is not None:
            slices[row].append(bar)
            step = _args(event).get("step")
            if bar.name == STEP and isinstance(step, int) and bar.end > bar.begin:
                steps[step] = bar.begin, bar.end
    if not steps:
        return None
    older = len(list(path.parent.glob(f"{path.stem}-*{path.suffix}")))
    actors, phases = _by_row(rows, slices)
    return Timeline(steps=dict(sorted(steps.items())), phases=phases, actors=actors, older=older)


def _by_row(rows: Mapping[str, str], slices: Mapping[str, list[Bar]]) -> tuple[dict[str, list[Bar]], list[Bar]]:
    actors: defaultdict[str, list[Bar]] = defaultdict(list)
    for tid, bars in slices.items():
        actors[_SECOND_ROW.sub("", rows.get(tid, "?"))] += bars
    for bars in actors.values():
        bars.sort(key=lambda bar: (bar.begin, -bar.end))
    own = actors.pop(CONTROLLER, [])
    phases = [bar for bar in own if bar.name != STEP and not bar.name.startswith("wait for ")]
    return dict(sorted(actors.items())), phases


def _bar(event: Event) -> Bar | None:
    """A slice; None where the event is none, or not one that can be drawn."""
    begin, length = event.get("ts"), event.get("dur")
    if event.get("ph") != "X" or not _is_time(begin) or not _is_time(length):
        return None
    return Bar(name=str(event.get("name")), begin=begin / 1e6, end=(begin + length) / 1e6)


def _is_time(value: object) -> TypeGuard[float]:
    """Whether it is a number of microseconds that a run can have: of a date, or of a length."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value < MOST_TIME


def _args(event: Event) -> Event:
    args = event.get("args")
    return args if isinstance(args, dict) else {}


def united(intervals: Iterator[Interval]) -> list[Interval]:
    """The same time without overlaps, in order."""
    found: list[Interval] = []
    for begin, end in sorted(intervals):
        if found and begin <= found[-1][1]:
            found[-1] = found[-1][0], max(end, found[-1][1])
        else:
            found.append((begin, end))
    return found


def _within(work: Sequence[Interval], window: Interval) -> Iterator[Interval]:
    """What of intervals in order lies in a window."""
    first = max(0, bisect_left(work, window) - 1)
    for begin, end in work[first:]:
        if begin >= window[1]:
            return
        if end > window[0]:
            yield max(begin, window[0]), min(end, window[1])


def _covered(work: Sequence[Interval], window: Interval) -> float:
    return sum(end - begin for begin, end in _within(work, window))


def _gaps(work: Sequence[Interval], window: Interval) -> Iterator[Interval]:
    at = window[0]
    for begin, end in _within(work, window):
        if begin > at:
            yield at, begin
        at = end
    if window[1] > at:
        yield at, window[1]
