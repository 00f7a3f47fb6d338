"""Stop requests: by a signal, or by a scheduler's approaching time limit."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import FrameType

from rlhf.config.schema import CheckpointConfig
from rlhf.errors import Stopped, UserError

SIGNALS = (signal.SIGTERM, signal.SIGINT)
ASK_AGAIN = signal.SIGUSR1
"""A stop request that may be repeated, and may come beside SIGTERM: several hooks of a cluster that ends send it."""
LAST_RESORT = "end of the grace period"
SAME_SECONDS = 0.05
"""Signals within this interval are one request: ``timeout`` and some schedulers send theirs twice."""
SPARE_SECONDS = 5.0
"""Time left before a scheduler's limit when the command ends itself."""
END_TIME = "SLURM_JOB_END_TIME"
"""Environment variable in which SLURM gives the end of the job, in seconds since 1970."""


class StopRequest:
    """Reports whether this command should stop, and why. It interrupts nothing: callers poll ``reason``."""

    def __init__(
        self, config: CheckpointConfig, started: float, clock: Callable[[], float], environment: Mapping[str, str]
    ) -> None:
        """Read the time limits of the recipe and of the scheduler.

        Args:
            started: start time of the command, in seconds since 1970.
            clock: returns the current time, in seconds since 1970.

        Raises:
            UserError: the environment's end of the job is not a number.
        """
        self._clock, self._before, self._grace = clock, config.before_deadline, config.grace_seconds
        self._end = _end_of_time(config.time_limit_seconds, started, environment.get(END_TIME, ""))
        self.requested: str | None = None
        """Name of the received signal."""
        self.requested_at: float | None = None
        """Time of the signal, at which ``checkpoint.grace_seconds`` begin."""
        self.notice: Callable[[str], object] = lambda text: None
        """Shows a line to the user, when a signal is received."""
        self._first: float | None = None
        """Time of the first SIGTERM or SIGINT."""

    @property
    def deadline(self) -> float | None:
        """Seconds left before the scheduler's limit; None without one."""
        return None if self._end is None else self._end - self._clock()

    def reason(self) -> str | None:
        """Reason to stop now; None to continue."""
        if self.requested is not None:
            return self.requested
        if self.deadline is None or self.deadline > self._before:
            return None
        if self.deadline <= 0:
            return f"{-self.deadline:.0f} s after the time limit"
        return f"{self.deadline:.0f} s before the time limit"

    @property
    def grace(self) -> float:
        """Seconds within which the command must end once it should stop; up to the limit if that is the reason."""
        if self.requested is not None or self.deadline is None:
            return self._grace
        return max(self._grace, self.deadline - SPARE_SECONDS)

    @contextmanager
    def install(self) -> Iterator[None]:
        """Context in which SIGTERM, SIGINT and SIGUSR1 are stop requests.

        Only the main thread may enter it, after ``ray.init``, which installs a handler for SIGTERM.
        """
        before = {number: signal.signal(number, self._asked) for number in (*SIGNALS, ASK_AGAIN)}
        reader, writer = os.pipe()
        os.set_blocking(writer, False)
        wakes = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        threading.Thread(target=_listen, args=(reader, self._grace), name="signals", daemon=True).start()
        try:
            yield
        finally:
            signal.set_wakeup_fd(wakes)
            os.close(writer)
            for number, handler in before.items():
                # None is a handler that was not set by Python and that Python cannot restore.
                signal.signal(number, signal.SIG_DFL if handler is None else handler)

    def _asked(self, number: int, frame: FrameType | None) -> None:
        """Record the first signal; a second SIGTERM or SIGINT ends the process at once."""
        now = time.monotonic()
        if self.requested is None:
            self.requested, self.requested_at = signal.Signals(number).name, self._clock()
            self.notice(f"{self.requested}: stopping within {self._grace:.0f} s; a second one stops at once")
        if number == ASK_AGAIN:
            return
        if self._first is None:
            self._first = now
        elif now - self._first > SAME_SECONDS:
            os._exit(128 + number)


class AskedToStop(BaseException):
    """SIGTERM before a run has begun. It is a ``BaseException``, so that no ``except Exception`` handles it."""


@contextmanager
def before_the_start() -> Iterator[None]:
    """Context in which SIGTERM ends the command at once as a stop: no work has begun that could be lost.

    Only the main thread may enter it.

    Raises:
        Stopped: the signal was received. Further ones are ignored while the command ends.
    """
    before = signal.signal(signal.SIGTERM, _not_begun)
    try:
        yield
    except AskedToStop:
        raise Stopped(signal.SIGTERM.name) from None
    finally:
        if signal.getsignal(signal.SIGTERM) is not signal.SIG_IGN:
            signal.signal(signal.SIGTERM, signal.SIG_DFL if before is None else before)


def _not_begun(number: int, frame: FrameType | None) -> None:
    signal.signal(number, signal.SIG_IGN)
    raise AskedToStop


def _listen(reader: int, grace_seconds: float) -> None:
    """End the process on the second signal and after the grace period, even if the main thread is in native code.

    Python handlers do not run then, but the C-level handler writes the number of each signal into the pipe.
    """
    first: float | None = None
    while number := os.read(reader, 1):
        if number[0] == ASK_AGAIN:
            end_within(grace_seconds)
        if number[0] not in SIGNALS:
            continue
        now = time.monotonic()
        if first is not None and now - first > SAME_SECONDS:
            os._exit(128 + number[0])
        if first is None:
            first = now
            end_within(grace_seconds)
    os.close(reader)


def end_within(seconds: float) -> None:
    """End this process with exit code 75 after ``seconds``, whatever it does then. Later calls change nothing."""
    if any(thread.name == LAST_RESORT for thread in threading.enumerate()):
        return
    timer = threading.Timer(seconds, os._exit, [Stopped.exit_code])
    timer.name, timer.daemon = LAST_RESORT, True
    timer.start()


def _end_of_time(limit: float | None, started: float, slurm: str) -> float | None:
    """Earliest end set by a scheduler or by the recipe, in seconds since 1970."""
    try:
        ends = [float(slurm)] if slurm else []
    except ValueError:
        raise UserError(
            f"the environment's {END_TIME} is {slurm!r}",
            "SLURM gives the end of the job there, in seconds since 1970",
            f"unset {END_TIME}, and set checkpoint.time_limit_seconds if the run has a limit",
        ) from None
    return min(ends if limit is None else [*ends, started + limit], default=None)
