"""Threads for a user's function, which end with the process.

Those of ``concurrent.futures`` are joined when Python ends: a function that hangs would keep the gateway from its end.
"""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any, TypeVar

T = TypeVar("T")


class DaemonPool:
    """A fixed number of threads and the calls that wait for one."""

    def __init__(self, threads: int) -> None:
        self._calls: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        for _ in range(threads):
            threading.Thread(target=self._work, daemon=True).start()

    async def run(self, function: Callable[..., T], *arguments: Any) -> T:
        """Call a function in a thread. A call whose caller is cancelled before it begins is left out."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = loop.create_future()

        def answer(set_it: Callable[[Any], None], value: object) -> None:
            if not future.done():
                set_it(value)

        def call() -> None:
            if future.cancelled():
                return
            try:
                end = (future.set_result, function(*arguments))
            except BaseException as error:
                end = (future.set_exception, error)  # type: ignore[assignment]
            with suppress(RuntimeError):  # the loop has ended meanwhile
                loop.call_soon_threadsafe(answer, *end)

        self._calls.put(call)
        return await future

    def _work(self) -> None:
        while True:
            self._calls.get()()
