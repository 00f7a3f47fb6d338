"""ASGI types, errors in the form of the OpenAI API, and reading a request's body within its limits."""

from __future__ import annotations

import asyncio
import json
import traceback
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from pathlib import Path
from typing import Any

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

JSON, EVENTS = "application/json", "text/event-stream; charset=utf-8"


class RefusedRequest(Exception):
    """A request that is answered by an error: status of HTTP, code and message in the form of the OpenAI API."""

    def __init__(self, status: int, code: str, message: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(status, code, message)
        self.status, self.code, self.message, self.headers = status, code, message, dict(headers or {})

    def body(self) -> bytes:
        """The error as the ``openai`` client reads it."""
        kind = "invalid_request_error" if self.status < 500 else "server_error"
        return json.dumps({"error": {"message": self.message, "type": kind, "param": None, "code": self.code}}).encode()


class ClientGone(Exception):
    """The client closed the connection."""


def describe_without_content(error: Exception) -> str:
    """Type and place of an error, without its message: that may quote a prompt or an answer."""
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__} at {Path(frame.filename).name}:{frame.lineno}"


def header(scope: Scope, name: bytes) -> str:
    """The first header of this lower-case name, or an empty text."""
    return next((value.decode("latin-1") for key, value in scope["headers"] if key == name), "")


async def read_body(scope: Scope, receive: Receive, most: int, seconds: float) -> bytes:
    """Read a request's body.

    Raises:
        RefusedRequest: it is too large or too slow.
        ClientGone: the client closed the connection before its end.
    """
    too_large = RefusedRequest(413, "request_too_large", f"a request may have {most} bytes")
    length = header(scope, b"content-length")
    if length.isdigit() and int(length) > most:
        raise too_large
    body = bytearray()
    try:
        async with asyncio.timeout(seconds):
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise ClientGone
                body += message.get("body", b"")
                if len(body) > most:
                    raise too_large
                if not message.get("more_body", False):
                    return bytes(body)
    except TimeoutError:
        raise RefusedRequest(408, "request_timeout", f"the request took more than {seconds:g} s to arrive") from None


async def start_response(send: Send, status: int, content_type: str, headers: Mapping[str, str] | None = None) -> None:
    """Send status and headers."""
    given = {"content-type": content_type, "cache-control": "no-store", **(headers or {})}
    encoded = [(name.encode(), value.encode("latin-1", "replace")) for name, value in given.items()]
    await send({"type": "http.response.start", "status": status, "headers": encoded})


async def respond(
    send: Send, status: int, body: bytes, content_type: str = JSON, headers: Mapping[str, str] | None = None
) -> None:
    """Send a whole response."""
    await start_response(send, status, content_type, {"content-length": str(len(body)), **(headers or {})})
    await send({"type": "http.response.body", "body": body})
