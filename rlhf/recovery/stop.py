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
from rlhf.errors import RLHFError, Stopped, Unsaved, UserError
from rlhf.recovery.last_resort import LastResort

INSISTENT = (signal.SIGTERM, signal.SIGINT)
"""Signals of which the second ends the process at once."""
ASK_AGAIN = signal.SIGUSR1
"""A stop request for programs: hooks of a cluster that ends send it."""
SIGNALS = (*INSISTENT, signal.SIGHUP, ASK_AGAIN)
"""All that ask for a stop. A closed terminal sends SIGHUP, and hooks send SIGUSR1, often more than once and beside
SIGTERM: these two never end the process at once."""
SAME_SECONDS = 0.5
"""Signals within this interval are one request: ``timeout`` and some schedulers send theirs twice."""
SPARE_SECONDS = 5.0
"""Time left before a scheduler's limit when the command ends itself."""
END_TIME = "SLURM_JOB_END_TIME"
"""Environment variable in which SLURM gives the end of the job, in seconds since 1970."""
MOST_SIGNALS = 512
"""Signals that are read from the pipe at a time."""


class StopRequest:
    """Reports whether this command should stop, and why. It interrupts nothing: callers poll ``reason``."""

    def __init__(
        self,
        config: CheckpointConfig,
        started: float,
        clock: Callable[[], float],
        environment: Mapping[str, str],
        last_resort: LastResort | None = None,
    ) -> None:
        """Read the time limits of the recipe and of the scheduler.

        Args:
            started: start time of the command, in seconds since 1970.
            clock: returns the current time, in seconds since 1970.
            last_resort: ends the process after the grace period.

        Raises:
            UserError: the environment's end of the job is not a number.
        """
        self._clock, self._before, self._grace = clock, config.before_deadline, config.grace_seconds
        self._end = _end_of_time(config.time_limit_seconds, started, environment.get(END_TIME, ""))
        self._last_resort = last_resort or LastResort()
        self.requested: str | None = None
        """Name of the received signal."""
        self.requested_at: float | None = None
        """Time of the signal, at which ``checkpoint.grace_seconds`` begin."""
        self.notice: Callable[[str], object] = lambda text: None
        """Shows a line to the user, when a signal is received."""
        self.unsaved: Callable[[], str | None] = saved
        """Returns what a stop has still to write, as a sentence; None if everything that it promises is on the disk."""
        self._heard: str | None = None
        """The first signal, also if the main thread is in native code and has not seen it."""
        self._first: float | None = None
        """Time of the first insistent signal, as the main thread saw it."""

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

    def end_in_time(self) -> None:
        """End the process after the grace period, whatever it does then; the exit code tells what was saved."""
        seconds = self.grace
        self._last_resort.end_within(seconds, lambda: self.outcome(seconds))

    def outcome(self, seconds: float) -> RLHFError:
        """Outcome of a stop whose grace period of ``seconds`` has ended: ``Stopped`` only if everything is saved."""
        why = self.reason() or self._heard or "time limit"
        missing = self.unsaved()
        if missing is None:
            return Stopped(why)
        return Unsaved(f"stopped on request ({why}), but {missing}, and the {seconds:.0f} s for it have passed.")

    @contextmanager
    def install(self) -> Iterator[None]:
        """Context in which SIGTERM, SIGINT, SIGHUP and SIGUSR1 are stop requests, but not a SIGHUP that is ignored.

        Only the main thread may enter it, after ``ray.init``, which installs a handler for SIGTERM.
        """
        before = {number: signal.signal(number, self._asked) for number in SIGNALS if not _is_detached(number)}
        reader, writer = os.pipe()
        os.set_blocking(writer, False)
        wakes = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        threading.Thread(target=self._listen, args=(reader,), name="signals", daemon=True).start()
        try:
            yield
        finally:
            signal.set_wakeup_fd(wakes)
            os.close(writer)
            for number, handler in before.items():
                if self.requested is not None and number not in INSISTENT:
                    handler = signal.SIG_IGN  # repeated, it would kill a command that is ending as it was asked to
                # None is a handler that was not set by Python and that Python cannot restore.
                signal.signal(number, signal.SIG_DFL if handler is None else handler)

    def _asked(self, number: int, frame: FrameType | None) -> None:
        """Record the first signal; a second insistent one ends the process at once."""
        if self.requested is None:
            self.requested, self.requested_at = signal.Signals(number).name, self._clock()
            self.notice(f"{self.requested}: stopping within {self._grace:.0f} s; a second one stops at once")
        if number in INSISTENT:
            self._first = _insist(number, self._first)

    def _listen(self, reader: int) -> None:
        """Do what ``_asked`` does, and begin the grace period, even if the main thread is in native code.

        Python handlers do not run then, but the C-level handler writes the number of each signal into the pipe. Signals
        that are read together were sent together.
        """
        first: float | None = None
        while numbers := os.read(reader, MOST_SIGNALS):
            heard = [number for number in numbers if number in SIGNALS]
            if heard:
                self._heard = self._heard or signal.Signals(heard[0]).name
                self._last_resort.end_within(self._grace, lambda: self.outcome(self._grace))
            if insistent := [number for number in heard if number in INSISTENT]:
                first = _insist(insistent[0], first)
        os.close(reader)


def _insist(number: int, first: float | None) -> float:
    """End the process if this insistent signal is the second one; returns the time of the first."""
    now = time.monotonic()
    if first is not None and now - first > SAME_SECONDS:
        os._exit(128 + number)
    return now if first is None else first


def _is_detached(number: signal.Signals) -> bool:
    """Whether a signal is to be ignored, as SIGHUP is by ``nohup``."""
    return number == signal.SIGHUP and signal.getsignal(number) is signal.SIG_IGN


def saved() -> None:
    """Nothing is unsaved: no training has begun, or all of it is on the disk."""


class AskedToStop(BaseException):
    """A signal before a run has begun. It is a ``BaseException``, so that no ``except Exception`` handles it."""


@contextmanager
def before_the_start() -> Iterator[None]:
    """Context in which SIGTERM and SIGHUP end the command at once as a stop: no work has begun that could be lost.

    Only the main thread may enter it.

    Raises:
        Stopped: a signal was received. Further ones are ignored while the command ends.
    """
    numbers = [number for number in (signal.SIGTERM, signal.SIGHUP) if not _is_detached(number)]
    before = {number: signal.signal(number, _not_begun) for number in numbers}
    try:
        yield
    except AskedToStop as asked:
        raise Stopped(str(asked)) from None
    finally:
        for number, handler in before.items():
            if signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, signal.SIG_DFL if handler is None else handler)


def _not_begun(number: int, frame: FrameType | None) -> None:
    for other in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(other, signal.SIG_IGN)
    raise AskedToStop(signal.Signals(number).name)


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
