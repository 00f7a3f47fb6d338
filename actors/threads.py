"""Runs calls that may hang in a bounded number of threads, with one deadline for all of them."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from queue import Empty, SimpleQueue
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")
THREADS = 16
"""Largest number of threads of one ``call_each``."""


def call_each(
    function: Callable[[Item], Result], items: Sequence[Item], seconds: float, threads: int = THREADS
) -> dict[int, Result]:
    """Call a function with each item, in threads; returns the results by the item's index.

    Calls that raise, or do not end within ``seconds``, have no result. A call that hangs, on a file server that does
    not answer for example, keeps its thread; it is a daemon thread, which does not keep the process from ending.
    """
    waiting, ended = SimpleQueue[int](), SimpleQueue[int]()
    results: dict[int, Result] = {}
    for index in range(len(items)):
        waiting.put(index)

    def work() -> None:
        with suppress(Empty):
            while True:
                index = waiting.get_nowait()
                with suppress(Exception):
                    results[index] = function(items[index])
                ended.put(index)

    for _ in range(min(threads, len(items))):
        threading.Thread(target=work, daemon=True).start()
    end, missing = time.monotonic() + seconds, len(items)
    with suppress(Empty):
        while missing:
            ended.get(timeout=max(0.0, end - time.monotonic()))
            missing -= 1
    while not waiting.empty():  # nothing is begun after the deadline
        with suppress(Empty):
            waiting.get_nowait()
    return dict(results)
