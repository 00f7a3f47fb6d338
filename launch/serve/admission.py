"""Bounds the requests in progress and those that wait for their turn; the first that came is the first served."""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from launch.serve.http import RefusedRequest
from rlhf.serving.gateway_config import AdmissionConfig

_SMOOTHING = 0.05
"""Weight of the newest request in the mean duration."""
LONGEST_RETRY = 60


class Admission:
    """Turns of requests."""

    def __init__(self, config: AdmissionConfig, clock: Callable[[], float]) -> None:
        self._config, self._clock = config, clock
        self.running = 0
        self._queue: deque[asyncio.Future[None]] = deque()
        self._mean_seconds = 1.0

    @property
    def waiting(self) -> int:
        """Requests that wait for their turn."""
        return len(self._queue)

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        """Context of a request's turn.

        Raises:
            RefusedRequest: the queue is full, or the turn did not come in time.
        """
        await self._enter()
        begin = self._clock()
        try:
            yield
        finally:
            self._mean_seconds += _SMOOTHING * (self._clock() - begin - self._mean_seconds)
            self._leave()

    async def _enter(self) -> None:
        if self.running < self._config.concurrent:
            self.running += 1
            return
        if len(self._queue) >= self._config.waiting:
            raise self._refusal()
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._queue.append(turn)
        try:
            async with asyncio.timeout(self._config.wait_seconds):
                await turn
        except BaseException as error:
            if turn.done() and not turn.cancelled():  # the turn came in the same moment: pass it on
                self._leave()
            elif turn in self._queue:  # else ``_leave`` passed it over
                self._queue.remove(turn)
            if isinstance(error, TimeoutError):
                raise self._refusal() from None
            raise

    def _leave(self) -> None:
        """Give the turn to the first that waits, or free it."""
        while self._queue:
            if not (first := self._queue.popleft()).done():
                first.set_result(None)
                return
        self.running -= 1

    def _refusal(self) -> RefusedRequest:
        seconds = retry_after(len(self._queue) + 1, self._config.concurrent, self._mean_seconds)
        return RefusedRequest(429, "overloaded", "too many requests; try again later", {"retry-after": str(seconds)})


def retry_after(waiting: int, concurrent: int, mean_seconds: float) -> int:
    """Whole seconds after which a new request would probably find a turn, from 1 to a minute."""
    return min(LONGEST_RETRY, max(1, math.ceil(waiting / concurrent * mean_seconds)))
