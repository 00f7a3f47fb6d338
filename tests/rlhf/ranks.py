"""Process groups for tests. Ranks are processes of their own, so that none of it is left over in pytest's process."""

from __future__ import annotations

import gc
import multiprocessing
import tempfile
from collections.abc import Callable
from concurrent.futures import FIRST_EXCEPTION, Future, ProcessPoolExecutor, wait
from pathlib import Path
from typing import Any

from rlhf.errors import RLHFError
from rlhf.zero.process_group import Rank

DEADLINE_SECONDS = 240.0
FORKSERVER = multiprocessing.get_context("forkserver")
"""Forks all ranks from one process that has imported what they need, which takes many seconds."""
FORKSERVER.set_forkserver_preload(["deepspeed", "rlhf.roles.policy", "rlhf.roles.critic"])


class Crew:
    """Ranks that meet once and stay for many calls.

    After a failure that no test wants, others take their place: one failing test shall not make the next ones fail.
    """

    def __init__(self, world: int) -> None:
        self.world = world
        self._start()

    def _start(self) -> None:
        self.folder = tempfile.TemporaryDirectory()
        meeting = (Path(self.folder.name) / "meeting").as_uri()
        self.processes = [
            # ZeRO-3 collects garbage at its start: frozen, what was imported is not looked through every time.
            ProcessPoolExecutor(1, mp_context=FORKSERVER, initializer=gc.freeze)
            for _ in range(self.world)
        ]
        self.ranks = [
            Rank(rank=r, world=self.world, rendezvous=meeting, device="cpu", threads=1, timeout_seconds=60.0)
            for r in range(self.world)
        ]

    def run(self, function: Callable[..., Any], *arguments: Any) -> list[Any]:
        """The results, by rank, of ``function(rank, *arguments)``, a function at the top of a module."""
        calls = [
            process.submit(function, rank, *arguments) for process, rank in zip(self.processes, self.ranks, strict=True)
        ]
        try:
            for call in wait(calls, DEADLINE_SECONDS, FIRST_EXCEPTION).done:
                call.result()  # the error of the rank that failed, not of those that wait for it
            return [call.result(timeout=0) for call in calls]
        except BaseException:
            wait(calls, 5.0)
            if not all(_stopped_together(call) for call in calls):
                self.stop()
                self._start()
            raise

    def stop(self) -> None:
        """End the processes."""
        for executor in self.processes:
            for process in dict(executor._processes).values():  # public from Python 3.14: kill_workers
                process.kill()
            executor.shutdown(wait=False, cancel_futures=True)
        self.folder.cleanup()


def _stopped_together(call: Future[Any]) -> bool:
    """Whether a rank ended its call with one of the project's own errors, which all ranks raise at the same place."""
    return call.done() and isinstance(call.exception(), (RLHFError, type(None)))
