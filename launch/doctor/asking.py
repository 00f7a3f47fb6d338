"""Runs questions to a machine that may not answer: each has a deadline, and an error is an answer."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from launch.doctor.findings import Fault, described


@dataclass(frozen=True, kw_only=True)
class TimedCall:
    """A function to call, and its deadline in seconds."""

    ask: Callable[[], Any]
    seconds: float


def answers(questions: Mapping[str, TimedCall]) -> dict[str, Any]:
    """Ask all questions at once, each in a thread; returns each answer or a ``Fault``.

    A thread that hangs (a dead file server, an unresponsive driver) is abandoned, and does not keep the process from
    ending.
    """
    given: dict[str, Any] = {}
    begin = time.monotonic()
    threads = {name: _start_thread(name, question, given) for name, question in questions.items()}
    for name, thread in threads.items():
        thread.join(max(0.0, begin + questions[name].seconds - time.monotonic()))
    had = dict(given)
    late = {name: Fault(reason=f"no answer within {questions[name].seconds:.0f} s") for name in threads}
    return {name: had.get(name, late[name]) for name in threads}


def answer(ask: Callable[[], Any], seconds: float) -> Any:
    """Ask one question; returns the answer or a ``Fault``."""
    return answers({"it": TimedCall(ask=ask, seconds=seconds)})["it"]


def _start_thread(name: str, question: TimedCall, given: dict[str, Any]) -> threading.Thread:
    def ask() -> None:
        try:
            given[name] = question.ask()
        except Exception as error:
            given[name] = Fault(reason=described(error))

    thread = threading.Thread(target=ask, name=f"doctor: {name}", daemon=True)
    thread.start()
    return thread
