"""Measures how long checkpoints take, and warns if a stop would not fit in ``checkpoint.grace_seconds``."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import TYPE_CHECKING

import ray

from rlhf.errors import UserError
from rlhf.recovery.grace import BYTES_PER_SECOND, GracePeriod
from rlhf.storage.jsonl import read_lines
from rlhf.tracking.alerts import Alert
from rlhf.tracking.run_folder import RunFolder
from rlhf.tracking.tracker import Tracker

if TYPE_CHECKING:  # processes that write checkpoints import this module
    from actors.session import Session


class WriteClock:
    """Measures a checkpoint that is written in the background, without the time until the loop looks at it."""

    def __init__(self, tasks: Iterable[ray.ObjectRef]) -> None:
        """Begin; ``tasks`` write the files."""
        self._begin, self._ends = time.monotonic(), list[float]()
        self._cancels = [task._on_ready(lambda error: self._ends.append(time.monotonic())) for task in tasks]

    def seconds(self, commit_seconds: float) -> float:
        """Duration of the writing, and of the commit after it."""
        return max(self._ends, default=self._begin) - self._begin + commit_seconds


class GraceCheck:
    """Compares the duration of each checkpoint of a stage with the time that a stop has."""

    def __init__(self, session: Session, run: RunFolder, tracker: Tracker) -> None:
        config, stop = session.recipe.checkpoint, session.stop
        has_limit = stop is not None and stop.deadline is not None
        self._period = GracePeriod(
            grace_seconds=config.grace_seconds, before_deadline=config.before_deadline if has_limit else None
        )
        self._session, self._run, self._tracker = session, run, tracker

    def begin(self, step: int, size: int) -> None:
        """Compare what is known at the start: the last checkpoint of an earlier command, or else the snapshot's size.

        Args:
            size: bytes of the first snapshot; 0 if none was taken.
        """
        try:
            events = read_lines(self._run.events)
        except UserError:  # damaged: they are a record for people, and no run needs them
            events = []
        measured = [event["seconds"] for event in events if event.get("kind") == "checkpoint" and "seconds" in event]
        if measured:
            self._compare(step, measured[-1], "the last one of an earlier command")
        elif size:
            self._compare(step, size / BYTES_PER_SECOND, f"estimated from its {size / 2**30:,.0f} GiB")

    def measured(self, step: int, seconds: float) -> None:
        """Compare a checkpoint that was just written."""
        self._compare(step, seconds, f"measured after step {step}")

    def _compare(self, step: int, seconds: float, source: str) -> None:
        text = self._period.shortfall(seconds, source)
        if text is not None:
            self._tracker.alert(step, Alert(kind="grace", title="A stop may lose its checkpoint", text=text))
            self._session.console.print(text)
