"""Ends waits inside NCCL, which nothing interrupts: all members of a group wait for one that is lost.

The group is aborted, by whoever notices the loss first or after a limit; the call that waited then returns, and what it
transferred is worthless. A rendezvous has no group yet to abort: its thread is left behind.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, wait
from threading import Lock, Thread, Timer
from typing import Self, TypeVar

Result = TypeVar("Result")
ABORTED = "aborted"
"""Kind of failure of an engine that is sound, and whose transfer was ended because of another one."""
POLL_SECONDS = 0.1


class Watchdog:
    """Context that calls ``abort`` once: after ``seconds``, or earlier by ``fire``; not after its end."""

    def __init__(self, seconds: float, abort: Callable[[], None]) -> None:
        self._abort, self._lock, self._is_over = abort, Lock(), False
        self._timer = Timer(seconds, self.fire, [f"no end within {seconds:.0f} s"])
        self._timer.daemon = True
        self.reason = ""
        """Why it has fired; empty if it has not."""

    def __enter__(self) -> Self:
        self._timer.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._timer.cancel()
        with self._lock:
            self._is_over = True

    def fire(self, reason: str) -> None:
        """Abort, from any thread; a second call does nothing."""
        with self._lock:
            if self.reason or self._is_over:
                return
            self.reason = reason
            self._abort()


def call_within(
    seconds: float, function: Callable[[], Result], is_hopeless: Callable[[], bool] = lambda: False
) -> Result:
    """Call a function in a thread, and return its result. The thread is left behind if it takes too long.

    Args:
        is_hopeless: asked regularly whether the call can still succeed.

    Raises:
        TimeoutError: it took longer than ``seconds``, or cannot succeed.
    """
    future: Future[Result] = Future()

    def call() -> None:
        try:
            future.set_result(function())
        except BaseException as error:
            future.set_exception(error)

    Thread(target=call, daemon=True).start()
    end = time.monotonic() + seconds
    while not future.done():
        left = end - time.monotonic()
        if left <= 0 or is_hopeless():
            raise TimeoutError(f"no end within {seconds:.0f} s" if left <= 0 else "it cannot succeed any more")
        wait([future], timeout=min(POLL_SECONDS, left))
    return future.result()


def on_this_device(function: Callable[[], Result]) -> Callable[[], Result]:
    """The function, with the GPU of the thread that calls this: a new thread would take the first one."""
    import torch  # the controller, which imports this module, does not need it

    if not torch.accelerator.is_available():
        return function
    device = torch.accelerator.current_device_index()

    def call() -> Result:
        torch.accelerator.set_device_index(device)
        return function()

    return call


def at_fault(left_out: Mapping[str, str]) -> dict[str, str]:
    """Of the engines that did not receive all weights, those to replace, with the kind of their failure.

    Those whose transfer was ended because of another one are sound. If none is known to have failed, all are replaced.
    """
    known = {name: kind for name, kind in left_out.items() if kind != ABORTED}
    return known or dict.fromkeys(left_out, "stalled")
