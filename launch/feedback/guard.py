"""What holds for every request, whatever it asks for: known hosts, a rate, a size, and the headers of each response.

It is an ASGI application around another, so that it also covers errors, static files and unknown paths.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Collection, MutableMapping
from typing import Any

from launch.feedback.limits import Rate, RateLimit

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[Scope, Receive, Send], Awaitable[None]]

MOST_BYTES = 2**20
"""Largest body of a request: an answer of 100 kB in JSON's escapes, with its prompt."""
ADDRESS_RATE = Rate(burst=400, per_second=100)
"""Of one address, which may be that of many raters behind one router."""

HEADERS = {
    # no inline scripts or styles, nothing from elsewhere, no frames around the page
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    # not no-referrer: with it browsers send `Origin: null` with forms, and the check of the origin would refuse them
    "referrer-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=()",
}
NO_STORE, NO_CACHE = "no-store", "no-cache"
"""Pages are kept nowhere; styles and scripts are kept, and compared with the server's each time."""


class Refusal(Exception):
    """A request that is not passed on: its status of HTTP, the reason in English, and further headers."""

    def __init__(self, status: int, reason: str, headers: tuple[tuple[str, str], ...] = ()) -> None:
        super().__init__(status, reason)
        self.status, self.reason, self.headers = status, reason, headers


class Guard:
    """The application around the page's."""

    def __init__(
        self, app: Application, *, hosts: Collection[str], clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Args: hosts are the names that ``Host`` may give, without ports."""
        self._app, self._hosts = app, frozenset(hosts)
        self._limit = RateLimit(ADDRESS_RATE, clock)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Check a request and pass it on; events of the server's life pass as they are."""
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self._app(scope, receive, send)
            return
        send = _with_headers(send, NO_CACHE if "/static/" in scope["path"] else NO_STORE)
        try:
            self._check(scope)
            body = await _read(scope, receive)
        except Refusal as refusal:
            await _refuse(refusal, send)
            return
        await self._app(scope, _replay(body, receive), send)

    def _check(self, scope: Scope) -> None:
        host = header(scope, "host")
        if host_name(host) not in self._hosts:
            raise Refusal(400, "this host name is not served here; see --allow-host")
        address = scope["client"][0] if scope.get("client") else ""
        if seconds := self._limit.take(address):
            raise Refusal(429, "too many requests", (("retry-after", str(int(seconds) + 1)),))


def header(scope: Scope, name: str) -> str:
    """The first header of this lower-case name, or an empty text."""
    return next((value.decode("latin-1") for key, value in scope["headers"] if key == name.encode()), "")


def host_name(host: str) -> str:
    """A ``Host`` header without its port, in lower case; ``[::1]:80`` gives ``[::1]``."""
    name = host.partition("]")[0] + "]" if host.startswith("[") else host.partition(":")[0]
    return name.lower()


async def _read(scope: Scope, receive: Receive) -> bytes:
    """The whole body, so that its size is known before anything is done."""
    if int(header(scope, "content-length") or 0) > MOST_BYTES:
        raise Refusal(413, f"a request may have {MOST_BYTES} bytes")
    body, has_more = bytearray(), True
    while has_more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise Refusal(400, "the request ended early")
        body += message.get("body", b"")
        has_more = message.get("more_body", False)
        if len(body) > MOST_BYTES:
            raise Refusal(413, f"a request may have {MOST_BYTES} bytes")
    return bytes(body)


def _replay(body: bytes, receive: Receive) -> Receive:
    """A receiver that gives the body once, then what the client does."""
    parts = [body]

    async def replay() -> Message:
        if parts:
            return {"type": "http.request", "body": parts.pop(), "more_body": False}
        return await receive()

    return replay


def _with_headers(send: Send, cache: str) -> Send:
    extra = [(name.encode(), value.encode()) for name, value in {**HEADERS, "cache-control": cache}.items()]

    async def wrapped(message: Message) -> None:
        if message["type"] == "http.response.start":
            message["headers"] = [*message.get("headers", []), *extra]
        await send(message)

    return wrapped


async def _refuse(refusal: Refusal, send: Send) -> None:
    headers = [("content-type", "text/plain; charset=utf-8"), *refusal.headers]
    encoded = [(name.encode(), value.encode()) for name, value in headers]
    await send({"type": "http.response.start", "status": refusal.status, "headers": encoded})
    await send({"type": "http.response.body", "body": refusal.reason.encode()})
