"""Watches a submitted job by its log, and by its folder if that is readable from here."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from launch.jobs import Jobs
from launch.report.read import STAGES
from launch.watch.folder import FolderWatch, WatchedFolder
from launch.watch.job_log import JobLog
from launch.watch.view import Ending, RunView
from rlhf.errors import RLHFError

FIRST_SECONDS = 10.0
"""Time for the cluster to send the existing log."""
SETTLED_SECONDS = 0.5
"""Time without another piece after which the existing log is complete."""
CLOCK_SPARE_SECONDS = 5.0
"""Most seconds by which this machine's file dates may be behind the cluster's clock."""


def watch_job(job: str, address: str, run: Path | None) -> Callable[[], RunView]:
    """A function that returns the current state of a job.

    Args:
        run: the run's folder. By default the job's own is read, if it is on this machine and was taken since the job
            started: a folder of that name may belong to another run.

    Raises:
        UserError: the cluster rejects this user's token, or the job is unknown.
        MachineryError: the cluster does not answer.
    """
    jobs = Jobs(address)
    info = jobs.info(job)
    recorded, started = (info.metadata or {}).get("run"), (info.start_time or 0) / 1000
    watched = WatchedFolder.of(run) if run is not None else WatchedFolder.of(Path(recorded)) if recorded else None
    if watched is not None and run is None and not was_taken(watched.root, started):
        watched = None
    watch = FolderWatch(watched) if watched is not None else None
    follower = Follower(lambda show: jobs.follow(job, show), JobLog(job, address))
    follower.settle()
    return lambda: follower.view(watch.poll() if watch is not None else None)


def was_taken(root: Path, since: float) -> bool:
    """Whether a run took a stage of this folder after ``since``, in seconds since 1970."""
    locks = [root / f".{stage}.lock" for stage in STAGES]
    return any(lock.exists() and lock.stat().st_mtime >= since - CLOCK_SPARE_SECONDS for lock in locks)


class Follower:
    """Follows a job's log in a thread beside the screen."""

    def __init__(self, follow: Callable[[Callable[[str], None]], int], log: JobLog) -> None:
        """Start the thread.

        Args:
            follow: passes on the log piece by piece until the job ends, and returns its exit code.
        """
        self._follow, self._log = follow, log
        self._pieces: queue.SimpleQueue[str | Ending] = queue.SimpleQueue()
        self._ending: Ending | None = None
        threading.Thread(target=self._run, daemon=True).start()

    def settle(self) -> None:
        """Read the log up to now."""
        end, wait = time.monotonic() + FIRST_SECONDS, FIRST_SECONDS
        try:
            while self._ending is None and time.monotonic() < end:
                self._take(self._pieces.get(timeout=wait))
                wait = SETTLED_SECONDS
        except queue.Empty:
            pass

    def view(self, folder_view: RunView | None) -> RunView:
        """The job's current state, with details from its folder. The job's end counts, not that of a stage."""
        while not self._pieces.empty():
            self._take(self._pieces.get())
        if folder_view is None:
            return replace(self._log.view(), ending=self._ending)
        return replace(folder_view, title=self._log.job, log=self._log.lines(), ending=self._ending)

    def _take(self, piece: str | Ending) -> None:
        if isinstance(piece, Ending):
            self._ending = piece
        else:
            self._log.add(piece)

    def _run(self) -> None:
        try:
            code = self._follow(self._pieces.put)
        except RLHFError as error:
            self._pieces.put(Ending(text=f"no longer followed: {error}", good=False))
        else:
            self._pieces.put(Ending(text=f"ended with exit code {code}", good=code == 0))
