"""Signals to this process pass through users' code; whatever the code raises itself does not."""

from __future__ import annotations

import os
import signal
import threading

import pytest

from rlhf.errors import Stopped
from rlhf.evaluation.user_code import UserCodeFault, message_of, own_faults
from rlhf.recovery.stop import before_the_start


class Mine(BaseException):
    """As a user may write it."""


def interrupted_by(number: signal.Signals) -> None:
    """A user's code, while which a signal comes."""
    os.kill(os.getpid(), number)
    threading.Event().wait(10)


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit, GeneratorExit, StopIteration, Mine])
def test_what_the_code_raises_is_its_fault(error: type[BaseException]) -> None:
    with pytest.raises(UserCodeFault) as caught, own_faults():
        raise error("no")
    assert type(caught.value.error) is error and message_of(caught.value.error) == "no"


def test_ctrl_c_passes_and_its_handler_is_as_before() -> None:
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt), own_faults():
        interrupted_by(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before


def test_sigterm_before_the_start_passes() -> None:
    before = signal.getsignal(signal.SIGTERM)
    try:
        with pytest.raises(Stopped), before_the_start(), own_faults():
            interrupted_by(signal.SIGTERM)
    finally:
        signal.signal(signal.SIGTERM, before)  # it is ignored from then on


def test_in_another_thread_no_signal_can_be_meant() -> None:
    found: list[BaseException] = []

    def work() -> None:
        try:
            with own_faults():
                raise KeyboardInterrupt
        except UserCodeFault as fault:
            found.append(fault.error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join(10)
    assert [type(error) for error in found] == [KeyboardInterrupt]


def test_a_handler_that_the_code_sets_stays() -> None:
    before = signal.getsignal(signal.SIGINT)
    try:
        with own_faults():
            signal.signal(signal.SIGINT, signal.SIG_IGN)
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)
