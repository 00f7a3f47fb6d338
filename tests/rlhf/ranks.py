"""Process groups for tests. Ranks are processes of their own, so that none of it is left over in pytest's process."""

from __future__ import annotations

import multiprocessing
import tempfile
from collections.abc import Callable
from concurrent.futures import FIRST_EXCEPTION, ProcessPoolExecutor, wait
from pathlib import Path
from typing import Any

from rlhf.zero.process_group import Rank

DEADLINE_SECONDS = 240.0


class Crew:
    """Ranks that meet once and stay for many calls: a process takes many seconds to import what a rank needs."""

    def __init__(self, world: int) -> None:
        self.folder = tempfile.TemporaryDirectory()
        meeting = (Path(self.folder.name) / "meeting").as_uri()
        spawn = multiprocessing.get_context("spawn")
        self.processes = [ProcessPoolExecutor(1, mp_context=spawn) for _ in range(world)]
        self.ranks = [
            Rank(rank=r, world=world, meeting=meeting, device="cpu", threads=1, timeout_seconds=60.0)
            for r in range(world)
        ]

    def run(self, function: Callable[..., Any], *arguments: Any) -> list[Any]:
        """The results, by rank, of ``function(rank, *arguments)``, a function at the top of a module."""
        calls = [
            process.submit(function, rank, *arguments) for process, rank in zip(self.processes, self.ranks, strict=True)
        ]
        for call in wait(calls, DEADLINE_SECONDS, FIRST_EXCEPTION).done:
            call.result()  # the error of the rank that failed, not of those that wait for it
        return [call.result(timeout=0) for call in calls]

    def stop(self) -> None:
        """End the processes."""
        for process in self.processes:
            process.shutdown(wait=False, cancel_futures=True)
        self.folder.cleanup()
