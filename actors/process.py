"""An actor's process: its location, its current activity, and stack dumps on a signal."""

from __future__ import annotations

import faulthandler
import os
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import ray

from actors.cluster import node_address
from rlhf.process_identity import start_of
from rlhf.progress import PROGRESS, Progress
from rlhf.recovery.facts import oom_kills
from rlhf.tracking.spans import Spans

DUMP_SIGNAL = signal.SIGUSR1
"""Makes an actor's process write the stacks of all its threads to its log."""


@dataclass(frozen=True, kw_only=True)
class ProcessLocation:
    """Location of an actor's process. ``children`` are processes that it started and that must not outlive it."""

    name: str
    node: str
    """Address of its node."""
    node_id: str
    """Ray's id of its node."""
    process: int
    """Its pid."""
    started: int | None = None
    """``rlhf.process_identity.start_of`` it: a later process may have its pid."""
    log: str = ""
    """File of its output."""
    log_begins: int = 0
    """Size of the file when the process started: before that it has the output of its predecessors."""
    children: tuple[int, ...] = ()
    children_started: tuple[int | None, ...] = ()
    """The same for each child."""
    oom_kills: int | None = None
    """``rlhf.recovery.facts.oom_kills()`` of its node when the process started."""

    def with_children(self, children: Sequence[int]) -> ProcessLocation:
        """The same process after it has started children."""
        return replace(self, children=tuple(children), children_started=tuple(map(start_of, children)))

    def __str__(self) -> str:
        return f"{self.name} (node {self.node}, process {self.process})"


def locate_process(name: str, log: Path, log_begins: int = 0) -> ProcessLocation:
    """Return the location of the calling actor's process."""
    own = os.getpid()
    return ProcessLocation(
        name=name,
        node=node_address(),
        node_id=ray.get_runtime_context().get_node_id(),
        process=own,
        started=start_of(own),
        log=str(log),
        log_begins=log_begins,
        oom_kills=oom_kills(),
    )


def dump_stacks_on_signal() -> None:
    """Make ``DUMP_SIGNAL`` write all threads' stacks to this process's output, even if the interpreter is stuck."""
    faulthandler.register(DUMP_SIGNAL, all_threads=True)


@dataclass(frozen=True, kw_only=True)
class Heartbeat:
    """An actor's answer at any time: what it does, for how long, and its progress with that."""

    activity: str
    """Empty if it does nothing."""
    seconds: float
    """Seconds since the activity began."""
    parts: int = 0
    """Parts of the activity that it has completed; see ``rlhf.progress``."""
    idle_seconds: float | None = None
    """Seconds since it completed the last of them; None without parts."""

    def __str__(self) -> str:
        text = f"{self.activity or 'nothing'} for {self.seconds:.0f} s"
        if self.idle_seconds is None:
            return text
        return f"{text}, {self.parts} parts done, the last {self.idle_seconds:.0f} s ago"


class Activity:
    """Current activity of an actor, readable from other threads, and the spans of past activities."""

    def __init__(self, progress: Progress = PROGRESS) -> None:
        self._progress = progress
        self.spans = Spans()
        self._begin("")

    def _begin(self, what: str) -> None:
        self._current, self._since, self._parts_before = what, time.monotonic(), self._progress.parts

    @contextmanager
    def __call__(self, what: str) -> Iterator[None]:
        """Context in which ``what`` is the current activity; adds a span at its end."""
        self._begin(what)
        try:
            with self.spans(what):
                yield
        finally:
            self._begin("")

    def heartbeat(self) -> Heartbeat:
        """Current activity, its seconds so far, and its progress."""
        parts = self._progress.parts - self._parts_before
        return Heartbeat(
            activity=self._current,
            seconds=time.monotonic() - self._since,
            parts=parts,
            idle_seconds=self._progress.idle() if parts else None,
        )
