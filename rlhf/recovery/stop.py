"""Being asked to stop: by a signal, or by a scheduler's time limit that comes near."""

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
LAST_RESORT = "end of the grace period"
SAME_SECONDS = 0.05
"""Signals that come closer than this are one request: ``timeout`` and some schedulers send theirs twice."""
SPARE_SECONDS = 5.0
"""Left before a scheduler's limit when the command ends itself."""
END_TIME = "SLURM_JOB_END_TIME"
"""Where SLURM says when it will end the job, in seconds since 1970."""


class StopRequest:
    """Whether this command was asked to stop, and why. Ask ``reason`` between steps: it interrupts nothing itself."""

    def __init__(
        self, config: CheckpointConfig, started: float, clock: Callable[[], float], environment: Mapping[str, str]
    ) -> None:
        """Args: started is when the command was started; it and clock are in seconds since 1970.

        Raises:
            UserError: the environment's end of the job is no number.
        """
        self._clock, self._before, self._grace = clock, config.before_deadline, config.grace_seconds
        self._end = _end_of_time(config.time_limit_seconds, started, environment.get(END_TIME, ""))
        self.requested: str | None = None
        """Name of the signal that asked."""
        self.requested_at: float | None = None
        """When it came: ``checkpoint.grace_seconds`` begin here."""
        self._first = 0.0

    @property
    def deadline(self) -> float | None:
        """Seconds left before the scheduler's limit; None where there is none."""
        return None if self._end is None else self._end - self._clock()

    def reason(self) -> str | None:
        """Why to stop now; None: go on."""
        if self.requested is not None:
            return self.requested
        if self.deadline is None or self.deadline > self._before:
            return None
        if self.deadline <= 0:
            return f"{-self.deadline:.0f} s after the time limit"
        return f"{self.deadline:.0f} s before the time limit"

    @property
    def grace(self) -> float:
        """Seconds that the command has to end, once there is a reason to: up to the scheduler's limit where that is
        the reason."""
        if self.requested is not None or self.deadline is None:
            return self._grace
        return max(self._grace, self.deadline - SPARE_SECONDS)

    @contextmanager
    def install(self) -> Iterator[None]:
        """Within the block SIGTERM and SIGINT are requests. Only the main thread may call this, and after ``ray.init``,
        which takes SIGTERM for itself.
        """
        before = {number: signal.signal(number, self._asked) for number in SIGNALS}
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
                # None stands for a handler that Python did not set and cannot set again.
                signal.signal(number, signal.SIG_DFL if handler is None else handler)

    def _asked(self, number: int, frame: FrameType | None) -> None:
        """The first signal asks; whoever sends a second means at once."""
        now = time.monotonic()
        if self.requested is None:
            self.requested, self.requested_at, self._first = signal.Signals(number).name, self._clock(), now
        elif now - self._first > SAME_SECONDS:
            os._exit(128 + number)


class AskedToStop(BaseException):
    """SIGTERM came before there was a run. No ``except Exception`` on the way may take it for a failure of its own."""


@contextmanager
def before_the_start() -> Iterator[None]:
    """Within the block SIGTERM ends the command at once, as one that was stopped: nothing has begun that could be lost.

    Only the main thread may call this.

    Raises:
        Stopped: the signal came. Further ones are ignored: the command is ending.
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
    """End the process on the second signal, and after the grace period, also while the main thread is in native code,
    where no handler runs.

    The kernel's side of a handler writes the number of each signal into the pipe, whatever the main thread does.
    """
    first: float | None = None
    while number := os.read(reader, 1):
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
    """Have this process end with exit code 75 after so long, whatever it does then. A second call changes nothing."""
    if any(thread.name == LAST_RESORT for thread in threading.enumerate()):
        return
    timer = threading.Timer(seconds, os._exit, [Stopped.exit_code])
    timer.name, timer.daemon = LAST_RESORT, True
    timer.start()


def _end_of_time(limit: float | None, started: float, slurm: str) -> float | None:
    """The nearest end that a scheduler has set, in seconds since 1970."""
    try:
        ends = [float(slurm)] if slurm else []
    except ValueError:
        raise UserError(
            f"the environment's {END_TIME} is {slurm!r}",
            "SLURM gives the end of the job there, in seconds since 1970",
            f"unset {END_TIME}, and set checkpoint.time_limit_seconds if the run has a limit",
        ) from None
    return min(ends if limit is None else [*ends, started + limit], default=None)
