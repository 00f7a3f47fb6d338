"""Shows a run as plain lines, one per step and event, if there is no terminal to draw on."""

from __future__ import annotations

from collections.abc import Iterator

from launch.report.read import number
from launch.watch.follow import Row
from launch.watch.said import clock, told
from launch.watch.standing import NUMBERS, Standing, step_seconds
from rlhf.tracking.console import format_seconds

FIRST = 10
"""Number of earlier steps, events and log lines to show at first."""


class Lines:
    """Yields the news between one state of a run and the next."""

    def __init__(self) -> None:
        self._stage = ""
        self._step: float | None = None
        self._events, self._log = 0, 0
        self._warned = False

    def new(self, standing: Standing) -> Iterator[str]:
        """The lines that are new in this state."""
        if standing.stage != self._stage:
            yield from self._begin(standing)
        yield from self._told_log(standing)
        if not standing.log.total:  # a job's log contains the steps
            yield from self._told_steps(standing)
        for event in standing.events.since(self._events):
            yield "  ".join(filter(None, (clock(event), standing.stage, told(event))))
        self._events = standing.events.total
        if standing.warning and not self._warned:
            yield f"{standing.stage}  {standing.warning}"
        self._warned = bool(standing.warning)

    def _begin(self, standing: Standing) -> Iterator[str]:
        """Start a stage: only the last of its earlier lines are shown."""
        steps = f", {standing.done} of {standing.steps} steps done" if standing.steps else ""
        yield f"{standing.title}: {standing.stage} ({standing.place}){steps}"
        first = not self._stage
        self._stage = standing.stage
        recent = standing.metrics.items[-FIRST - 1 :] if first else ()
        self._step = number(recent[0].get("step")) if len(recent) > FIRST else None
        self._events = max(0, standing.events.total - FIRST) if first else 0

    def _told_log(self, standing: Standing) -> Iterator[str]:
        if not self._log:
            self._log = max(0, standing.log.total - FIRST)
        yield from standing.log.since(self._log)
        self._log = standing.log.total

    def _told_steps(self, standing: Standing) -> Iterator[str]:
        rows = standing.metrics.items
        last = number(rows[-1].get("step")) if rows else None
        if last is None:
            return
        if self._step is not None and last < self._step:
            yield f"{standing.stage}  resumed after step {last:.0f}"
            self._step = last
        for row in rows:
            step = number(row.get("step"))
            if step is not None and (self._step is None or step > self._step):
                yield step_line(standing, row)
                self._step = step


def step_line(standing: Standing, row: Row) -> str:
    """A line of a step: its number, its metrics, its seconds, and the estimated remaining time."""
    step = int(number(row.get("step")) or 0) + 1
    of = f"{step}/{standing.steps}" if standing.steps else f"{step}"
    values = {name: number(row.get(metric)) for name, metric in NUMBERS.items()}
    parts = [f"{standing.stage}  {of}", *(f"{name} {v:.4g}" for name, v in values.items() if v is not None)]
    if (seconds := step_seconds((row,))) is not None:
        parts.append(f"{seconds:.3g} s")
    if step == standing.done and standing.seconds_left is not None:
        parts.append(f"about {format_seconds(standing.seconds_left)} left")
    return "  ".join(parts)
