"""Ends the process where its main thread does not: after the grace period of a stop, or once Ray itself has failed."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import suppress

from rlhf.errors import MachineryError, RLHFError
from rlhf.recovery.leaving import leave

RECORD_SECONDS = 2.0
"""How long the end may take: what it reads and records is on a disk that may not answer."""


def unrecorded(error: RLHFError) -> RLHFError:
    """The error itself, which no stage records."""
    return error


class LastResort:
    """Ends the process at a set time with an error's exit code, after recording and showing the error.

    Args:
        leave: ends the process with an exit code, without clean-up.
    """

    def __init__(self, leave: Callable[[int], object] = leave) -> None:
        self.record: Callable[[RLHFError], RLHFError] = unrecorded
        """Records the error that ends the process; returns the error to show."""
        self.show: Callable[[str], object] = lambda text: None
        """Shows a line to the user."""
        self._leave, self._lock = leave, threading.Lock()
        self._timer: threading.Timer | None = None
        self._at = float("inf")

    def end_within(self, seconds: float, error: Callable[[], RLHFError]) -> None:
        """End the process after ``seconds``, whatever it does then; of several calls the earliest end counts.

        Args:
            error: returns the error at that time, so that it tells what is true then.
        """
        with self._lock:
            at = time.monotonic() + seconds
            if at >= self._at:
                return
            if self._timer is not None:
                self._timer.cancel()
            self._at, self._timer = at, threading.Timer(seconds, self._end, [error])
            self._timer.daemon = True
            self._timer.start()

    def _end(self, error: Callable[[], RLHFError]) -> None:
        code = MachineryError.exit_code  # until it is known that nothing is missing
        late = threading.Timer(RECORD_SECONDS, lambda: self._leave(code))
        late.daemon = True
        late.start()
        with suppress(Exception):
            found = error()
            code = found.exit_code
            self.show(str(self.record(found)))
        self._leave(code)
