"""Runs users' code: whatever it raises is its own fault, also what derives from ``BaseException`` alone.

``except Exception`` would let a function's ``KeyboardInterrupt`` or ``SystemExit`` end the run as if somebody had asked
for it. Ctrl-C and other signals still do: their handlers raise, and not the user's code.
"""

from __future__ import annotations

import signal
import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import CodeType, FrameType

from rlhf.unicode import encodable


class UserCodeFault(Exception):
    """A user's code raised ``error``."""

    def __init__(self, error: BaseException) -> None:
        self.error = error
        super().__init__(type(error).__name__)


@contextmanager
def own_faults() -> Iterator[None]:
    """Context that runs users' code.

    Raises:
        UserCodeFault: the code raised an exception of any type. One that a handler of a signal raised passes unchanged.
    """
    with _visible_interrupt():
        handlers = _handlers()
        try:
            yield
        except BaseException as error:
            if any(frame.f_code in handlers for frame, _ in traceback.walk_tb(error.__traceback__)):
                raise
            raise UserCodeFault(error) from error


def _handlers() -> frozenset[CodeType]:
    """Code of the functions that handle signals now: a frame of theirs is in the traceback of what they raise."""
    found = (getattr(signal.getsignal(number), "__code__", None) for number in signal.valid_signals())
    return frozenset(code for code in found if code is not None)


@contextmanager
def _visible_interrupt() -> Iterator[None]:
    """Context in which the handler of Ctrl-C leaves a frame, which Python's own, written in C, does not."""
    is_main = threading.current_thread() is threading.main_thread()  # others receive no signals
    if not is_main or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield
        return
    signal.signal(signal.SIGINT, _interrupt)
    try:
        yield
    finally:
        if signal.getsignal(signal.SIGINT) is _interrupt:
            signal.signal(signal.SIGINT, signal.default_int_handler)


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def message_of(error: BaseException) -> str:
    """The message of an error of a user's code, whose own ``__str__`` may fail, as text that can be encoded."""
    text = "(no message)"
    with suppress(UserCodeFault), own_faults():  # its __str__ may fail
        text = encodable(str(error))
    return text
