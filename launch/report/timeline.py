"""Reads a stage's timeline: the busy times of every actor in each step, and the last steps."""

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
"""Number of phases before a moment to search for one that contains it: they are hardly nested."""
MOST_TIME = 1e17
"""In microseconds since 1970, some thousand years from now."""
_SECOND_ROW = re.compile(r" \(\d+\)$")  # row of spans that overlap others of the same actor

Interval = tuple[float, float]
"""(begin, end) in seconds."""


@dataclass(frozen=True, kw_only=True)
class Bar:
    """A span of work."""

    name: str
    begin: float
    end: float


@dataclass(frozen=True, kw_only=True)
class Timeline:
    """The newest file of a stage's timeline."""

    steps: Mapping[int, Interval]
    """Steps with their last interval."""
    phases: Sequence[Bar]
    """Phases of the controller, by begin."""
    actors: Mapping[str, Sequence[Bar]]
    """Work of each actor, by begin."""
    older: int = 0
    """Number of older files."""

    def busy(self, actor: str) -> dict[int, float]:
        """Busy share of the actor by step, 0 to 1."""
        work = merge_intervals((bar.begin, bar.end) for bar in self.actors[actor])
        return {step: _covered(work, window) / (window[1] - window[0]) for step, window in self.steps.items()}

    def bubbles(self, actor: str) -> list[tuple[float, int, str]]:
        """Idle times of an actor: (seconds, step, phase at the middle)."""
        work = merge_intervals((bar.begin, bar.end) for bar in self.actors[actor])
        begins = [bar.begin for bar in self.phases]
        found = []
        for step, window in self.steps.items():
            for begin, end in _gaps(work, window):
                middle = (begin + end) / 2
                found.append((end - begin, step, self._phase_at(middle, bisect_right(begins, middle))))
        return found

    def _phase_at(self, moment: float, after: int) -> str:
        """The innermost phase that contains a moment; phases from ``after`` on begin later."""
        near = reversed(self.phases[max(0, after - DEEPEST) : after])
        return next((bar.name for bar in near if moment <= bar.end), "between phases")


def read_timeline(path: Path) -> Timeline | None:
    """Read the timeline in ``trace.json``, complete or not; None without a step in it."""
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
    """A bar of an event; None for other events, and for those that cannot be drawn."""
    begin, length = event.get("ts"), event.get("dur")
    if event.get("ph") != "X" or not _is_time(begin) or not _is_time(length):
        return None
    return Bar(name=str(event.get("name")), begin=begin / 1e6, end=(begin + length) / 1e6)


def _is_time(value: object) -> TypeGuard[float]:
    """Whether a value is a plausible number of microseconds, as a date or a duration."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value < MOST_TIME


def _args(event: Event) -> Event:
    args = event.get("args")
    return args if isinstance(args, dict) else {}


def merge_intervals(intervals: Iterator[Interval]) -> list[Interval]:
    """The same time without overlaps, in order."""
    found: list[Interval] = []
    for begin, end in sorted(intervals):
        if found and begin <= found[-1][1]:
            found[-1] = found[-1][0], max(end, found[-1][1])
        else:
            found.append((begin, end))
    return found


def _within(work: Sequence[Interval], window: Interval) -> Iterator[Interval]:
    """The parts of ordered intervals within a window."""
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
