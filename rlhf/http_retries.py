"""Retries of HTTP requests: which failures pass, and how long to wait before the next attempt."""

from __future__ import annotations

import os

import httpx
from tenacity import RetryCallState, wait_exponential_jitter

from rlhf.errors import UserError

TRANSIENT_STATUS = (408, 425, 429)
FIRST_WAIT, LONGEST_WAIT = 0.5, 30.0
"""Seconds between attempts: doubled after each attempt, plus a random jitter of up to ``FIRST_WAIT``."""
IDLE_SECONDS = 60.0
"""Unused connections are closed after this time, because firewalls drop idle connections silently."""


class TransientError(Exception):
    """A transient failure; ``wait`` is the delay in seconds that the service requested."""

    def __init__(self, reason: str, wait: float = 0.0) -> None:
        super().__init__(reason)
        self.wait = wait


def is_transient(status: int) -> bool:
    """Whether the same request may succeed later."""
    return status in TRANSIENT_STATUS or status >= 500


async def post(
    client: httpx.AsyncClient, url: httpx.URL | str, content: bytes, longest: int
) -> tuple[int, bytes | None]:
    """Send a request; returns status and body of the answer, None for a body of more than ``longest`` bytes.

    Raises:
        TransientError: the status is transient.
    """
    async with client.stream("POST", url, content=content) as answer:
        if is_transient(answer.status_code):
            raise TransientError(f"HTTP {answer.status_code}", parse_retry_after(answer.headers.get("Retry-After")))
        body = b""
        async for piece in answer.aiter_bytes():
            body += piece
            if len(body) > longest:
                return answer.status_code, None
    return answer.status_code, body


def seconds_to_wait(state: RetryCallState) -> float:
    """Seconds before the next attempt: exponential backoff, or the delay that the service requests if it is longer."""
    failure = state.outcome.exception() if state.outcome else None
    requested = failure.wait if isinstance(failure, TransientError) else 0.0
    doubled = wait_exponential_jitter(multiplier=FIRST_WAIT, max=LONGEST_WAIT, jitter=FIRST_WAIT)(state)
    return max(doubled, min(requested, LONGEST_WAIT))


def parse_retry_after(header: str | None) -> float:
    """``Retry-After`` in seconds; 0 for a date."""
    return float(header) if header and header.isascii() and header.isdigit() else 0.0


def bearer(variable: str) -> dict[str, str]:
    """The header with the token in an environment variable; empty if the variable is not set.

    Raises:
        UserError: the value is no token; the message does not show it.
    """
    token = os.environ.get(variable, "").strip()
    if not token:
        return {}
    if not (token.isascii() and token.isprintable()):  # httpx would refuse it with its value in the message
        raise UserError(
            f"the environment variable {variable} is not a valid token",
            "it has characters that a header may not contain",
        )
    return {"Authorization": f"Bearer {token}"}
