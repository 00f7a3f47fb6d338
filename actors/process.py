"""An actor's process: where it is, what it is doing, and how it says so."""

from __future__ import annotations

import faulthandler
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import ray

from actors.cluster import node_address
from rlhf.recovery.facts import oom_kills
from rlhf.tracking.spans import Spans

DUMP_SIGNAL = signal.SIGUSR1
"""Makes an actor's process write the stacks of all its threads to its log."""


@dataclass(frozen=True, kw_only=True)
class Whereabouts:
    """Where an actor's process is. ``children`` are the processes that it started and that must not outlive it."""

    name: str
    node: str
    """Address of its node."""
    node_id: str
    """Ray's name of that node."""
    process: int
    log: str = ""
    """File that its output goes to."""
    children: tuple[int, ...] = ()
    oom_kills: int | None = None
    """``rlhf.recovery.facts.oom_kills()`` of its node when it was started."""

    def __str__(self) -> str:
        return f"{self.name} (node {self.node}, process {self.process})"


def whereabouts(name: str, log: Path) -> Whereabouts:
    """Where the calling actor is."""
    node_id = ray.get_runtime_context().get_node_id()
    return Whereabouts(
        name=name, node=node_address(), node_id=node_id, process=os.getpid(), log=str(log), oom_kills=oom_kills()
    )


def dump_stacks_on_signal() -> None:
    """Have ``DUMP_SIGNAL`` write all stacks to this process's output, even where Python itself is stuck."""
    faulthandler.register(DUMP_SIGNAL, all_threads=True)


class Doing:
    """What an actor is doing, and since when, for whoever asks from another thread; and what it has done."""

    def __init__(self) -> None:
        self._doing, self._since = "", time.monotonic()
        self.spans = Spans()

    @contextmanager
    def __call__(self, what: str) -> Iterator[None]:
        """Within the block the actor is doing ``what``."""
        self._doing, self._since = what, time.monotonic()
        try:
            with self.spans(what):
                yield
        finally:
            self._doing, self._since = "", time.monotonic()

    def pulse(self) -> tuple[str, float]:
        """What it is doing (empty: waiting to be told), and for how many seconds."""
        return self._doing, time.monotonic() - self._since
