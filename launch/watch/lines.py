"""Shows a run as plain lines, one per step and event, if there is no terminal to draw on."""

from __future__ import annotations

from collections.abc import Iterator

from launch.report.read import number
from launch.watch.describe import local_time
from launch.watch.events import fit_events, fold_events
from launch.watch.follow import Row
from launch.watch.view import NUMBERS, RunView, step_seconds
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

    def new(self, view: RunView) -> Iterator[str]:
        """The lines that are new in this state."""
        begins = view.stage != self._stage
        if begins:
            yield from self._begin(view)
        yield from self._log_lines(view)
        if not view.log.total:  # a job's log contains the steps
            yield from self._step_lines(view)
        groups = fold_events(view.events.since(self._events))
        for group in fit_events(groups, FIRST) if begins else groups:
            yield "  ".join(filter(None, (local_time(group.last), view.stage, group.describe())))
        self._events = view.events.total
        if view.warning and not self._warned:
            yield f"{view.stage}  {view.warning}"
        self._warned = bool(view.warning)

    def _begin(self, view: RunView) -> Iterator[str]:
        """Start a stage: only the last of its earlier lines are shown."""
        steps = f", {view.done} of {view.steps} steps done" if view.steps else ""
        yield f"{view.title}: {view.stage} ({view.source}){steps}"
        first = not self._stage
        self._stage = view.stage
        recent = view.metrics.items[-FIRST - 1 :] if first else ()
        self._step = number(recent[0].get("step")) if len(recent) > FIRST else None
        self._events = 0

    def _log_lines(self, view: RunView) -> Iterator[str]:
        if not self._log:
            self._log = max(0, view.log.total - FIRST)
        yield from view.log.since(self._log)
        self._log = view.log.total

    def _step_lines(self, view: RunView) -> Iterator[str]:
        rows = view.metrics.items
        last = number(rows[-1].get("step")) if rows else None
        if last is None:
            return
        if self._step is not None and last < self._step:
            yield f"{view.stage}  resumed after step {last:.0f}"
            self._step = last
        for row in rows:
            step = number(row.get("step"))
            if step is not None and (self._step is None or step > self._step):
                yield step_line(view, row)
                self._step = step


def step_line(view: RunView, row: Row) -> str:
    """A line of a step: its number, its metrics, its seconds, and the estimated remaining time."""
    step = int(number(row.get("step")) or 0) + 1
    of = f"{step}/{view.steps}" if view.steps else f"{step}"
    values = {name: number(row.get(metric)) for name, metric in NUMBERS.items()}
    parts = [f"{view.stage}  {of}", *(f"{name} {v:.4g}" for name, v in values.items() if v is not None)]
    if (seconds := step_seconds((row,))) is not None:
        parts.append(f"{seconds:.3g} s")
    if step == view.done and view.seconds_left is not None:
        parts.append(f"about {format_seconds(view.seconds_left)} left")
    return "  ".join(parts)
