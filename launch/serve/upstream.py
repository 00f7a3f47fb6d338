"""Requests from the gateway to the servers, with a timeout for every phase.

aiohttp and not httpx: it takes a third of the CPU time for each piece of a stream (``benchmarks.gateway --clients``).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import aiohttp

from launch.serve.engine_process import EngineProcess
from rlhf.http_retries import bearer

IDLE_SECONDS = 4.0
"""Idle connections are closed after it: before uvicorn, which serves vLLM, closes them after 5 s."""
AVOID_SECONDS = 5.0
"""For how long a server that refused a connection is tried last."""
ENGINE_KEY = "RLHF_ENGINE_KEY"
"""Environment variable with the API key of the servers, if they require one; it is never written."""


class UpstreamFailure(Exception):
    """A server gave no answer.

    Args:
        reason: one of ``connection``, ``first_byte``, ``timeout``, ``status``, ``refused`` (a status that blames the
            request), ``broken``, ``malformed``, ``too_long``, ``low_score`` and ``withdrawn``; a label of metrics.
    """

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(reason, detail)
        self.reason, self.detail = reason, detail


@dataclass(kw_only=True, eq=False)
class Arm:
    """A version in service: its servers, and the requests in progress at each."""

    version: str
    digest: str
    urls: tuple[str, ...]
    process: EngineProcess | None = None
    """The server, if the gateway started it."""
    in_flight: dict[str, int] = field(default_factory=dict)
    failed: dict[str, float] = field(default_factory=dict)
    """Address → monotonic time of the last failed connection."""

    @property
    def is_running(self) -> bool:
        """False if its server, which the gateway started, has ended."""
        return self.process is None or self.process.is_running

    @property
    def requests(self) -> int:
        """Requests in progress."""
        return sum(self.in_flight.values())

    def order(self) -> list[str]:
        """Addresses, that with the fewest requests first; those that just refused a connection last."""
        if len(self.urls) == 1:
            return list(self.urls)
        recent = time.monotonic() - AVOID_SECONDS
        return sorted(self.urls, key=lambda url: (self.failed.get(url, 0.0) > recent, self.in_flight.get(url, 0)))


@dataclass(frozen=True, kw_only=True)
class OpenAnswer:
    """An answer whose first bytes have come."""

    response: aiohttp.ClientResponse
    first: bytes
    deadline: asyncio.Timeout

    @property
    def status(self) -> int:
        """Status of HTTP."""
        return self.response.status

    async def pieces(self) -> AsyncIterator[bytes]:
        """The bytes as they come, the first ones included."""
        if self.first:
            yield self.first
        async for piece in self.response.content.iter_any():
            yield piece

    async def read(self, most: int) -> bytes:
        """The whole answer.

        Raises:
            UpstreamFailure: it has more than ``most`` bytes.
        """
        body = bytearray()
        async for piece in self.pieces():
            body += piece
            if len(body) > most:
                raise UpstreamFailure("too_long", f"more than {most} bytes")
        return bytes(body)


class Upstream:
    """A client with its own connections."""

    def __init__(self, connect_seconds: float, connections: int = 0) -> None:
        """Args: connections is the largest number at the same time; 0: any number.

        Raises:
            UserError: the servers' API key in the environment is malformed.
        """
        self._connect_seconds, self._connections, self._headers = connect_seconds, connections, bearer(ENGINE_KEY)
        self._session: aiohttp.ClientSession

    def open(self) -> None:
        """Prepare connections; needs the running event loop."""
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=self._connections, keepalive_timeout=IDLE_SECONDS),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=self._connect_seconds),
            trust_env=False,
            cookie_jar=aiohttp.DummyCookieJar(),
            headers=self._headers,
        )

    async def close(self) -> None:
        """Close all connections."""
        await self._session.close()

    @asynccontextmanager
    async def post(
        self, arm: Arm, url: str, path: str, body: bytes, id: str, *, first_seconds: float, total_seconds: float
    ) -> AsyncIterator[OpenAnswer]:
        """Context of an answer; the server learns of its end, and stops generating if the answer is not complete.

        Raises:
            UpstreamFailure: also if the answer breaks off within the context.
        """
        headers = {"Content-Type": "application/json", "Accept-Encoding": "identity", "X-Request-Id": id}
        response: aiohttp.ClientResponse | None = None
        arm.in_flight[url] = arm.in_flight.get(url, 0) + 1
        try:
            async with asyncio.timeout(total_seconds) as deadline:
                try:
                    async with asyncio.timeout(min(first_seconds, total_seconds)):
                        response = await self._session.post(
                            url + path, data=body, headers=headers, allow_redirects=False
                        )
                        first = await response.content.readany()
                except TimeoutError:
                    raise UpstreamFailure("first_byte", f"nothing within {first_seconds:g} s") from None
                yield OpenAnswer(response=response, first=first, deadline=deadline)
        except TimeoutError:
            raise UpstreamFailure("timeout", f"no end within {total_seconds:g} s") from None
        except (aiohttp.ClientError, OSError) as error:
            arm.failed[url] = time.monotonic()
            raise UpstreamFailure("broken" if response else "connection", type(error).__name__) from None
        finally:
            arm.in_flight[url] -= 1
            if response is not None:
                response.close()  # of an incomplete answer the connection too

    async def get(self, url: str, seconds: float) -> tuple[int, bytes]:
        """Status and body of a small page; (0, b"") if there is none."""
        try:
            async with asyncio.timeout(seconds), self._session.get(url, allow_redirects=False) as response:
                return response.status, await response.content.read(2**20)
        except (TimeoutError, aiohttp.ClientError, OSError):
            return 0, b""
