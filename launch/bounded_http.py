"""HTTP connections that end by themselves if the client stalls: for all services of this project.

uvicorn waits for ever for a request's head and for a client that does not read, and takes a head of any size. A few
thousand such connections, from anybody and without a key, would use up the process's files, memory, or turns.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

HEAD_SECONDS = 10.0
"""Time for a request's line and headers to arrive, from the connection's first moment or the request's first byte."""
HEAD_BYTES = 64 * 2**10
WRITE_SECONDS = 30.0
"""Time for a client to take something of an answer of which 64 KiB wait for it."""


class BoundedHttp(HttpToolsProtocol):
    """A connection. The names of its methods are asyncio's and httptools's."""

    _head: asyncio.TimerHandle | None = None
    """Closes the connection; runs while a head is awaited."""
    _write: asyncio.TimerHandle | None = None
    """Aborts the connection; runs while the client takes nothing."""
    _awaits_head = True
    _head_bytes = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin: the first head has to come."""
        super().connection_made(transport)
        self._head = self._after(HEAD_SECONDS, self._end_slow_head)

    def connection_lost(self, exc: Exception | None) -> None:
        """End."""
        self._stop_head()
        self.resume_writing()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Read; close the connection if a head is too long."""
        if self._awaits_head and self._head is None:
            self._head = self._after(HEAD_SECONDS, self._end_slow_head)
        self._head_bytes += len(data)
        super().data_received(data)
        if self._awaits_head and self._head_bytes > HEAD_BYTES and not self.transport.is_closing():
            self.send_400_response("The head of the request is too long.")

    def on_headers_complete(self) -> None:
        """The head is there."""
        self._awaits_head = False
        self._stop_head()
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        """The request is there; another one may follow."""
        super().on_message_complete()
        self._awaits_head, self._head_bytes = True, 0

    def pause_writing(self) -> None:
        """The client takes less than is sent."""
        super().pause_writing()
        self._write = self._after(WRITE_SECONDS, self.transport.abort)

    def resume_writing(self) -> None:
        """The client has taken most of it."""
        if self._write is not None:
            self._write.cancel()
            self._write = None
        super().resume_writing()

    def _end_slow_head(self) -> None:
        """Close; but not under an answer to the request before."""
        self._head = None
        if self.cycle is not None and not self.cycle.response_complete:
            self._head = self._after(HEAD_SECONDS, self._end_slow_head)
        elif not self.transport.is_closing():
            self.transport.close()

    def _stop_head(self) -> None:
        if self._head is not None:
            self._head.cancel()
            self._head = None

    def _after(self, seconds: float, work: Callable[[], None]) -> asyncio.TimerHandle:
        return self.loop.call_later(seconds, work)
