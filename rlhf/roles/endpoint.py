"""A service that scores over HTTP. Two kinds of failure, and no way from one to the other:

passing  nothing answered, or it answered that it cannot now (no connection, late, 408, 425, 429, 5xx): asked again, and
         in the end treated as ``on_failure`` says;
lasting  an answer that asking again would not change (another status, no JSON, anything but one finite number for each
         response): the run stops and names the sample, whatever ``on_failure`` says.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import httpx
import numpy as np
from tenacity import AsyncRetrying, RetryCallState, RetryError, retry_if_exception_type, wait_exponential_jitter

from rlhf.config.schema import EndpointConfig
from rlhf.errors import MachineryError, UserError
from rlhf.evaluation.scorers import check_scores, name_sample
from rlhf.secrets import without_secrets

TOKEN = "RLHF_REWARD_TOKEN"
"""Environment variable whose value is sent as ``Authorization: Bearer``; it stands in no file and no message."""
CONTRACT = 'the answer is {"scores": [...]}, one finite number a response, in their order'
PASSING_STATUS = (408, 425, 429)
FIRST_WAIT, LONGEST_WAIT = 0.5, 30.0
"""Seconds between attempts: doubled each time, with as much as the first one at random on top."""
IDLE_SECONDS = 60.0
"""An unused connection is closed after this: firewalls forget it at some time, and do not say so."""
ANSWER_BYTES, SCORE_BYTES = 2**16, 2**10
"""Longest answer that is read: so much, and so much more for each score."""

Row = Mapping[str, object]


class _Passing(Exception):
    """A failure that may pass; ``wait`` is how many seconds the service asked for."""

    def __init__(self, reason: str, wait: float = 0.0) -> None:
        super().__init__(reason)
        self.wait = wait


@dataclass(frozen=True, kw_only=True)
class _Request:
    """The samples of one request; ``first`` is the place of the first within the call."""

    first: int
    prompts: Sequence[str]
    responses: Sequence[str]
    rows: Sequence[Row]

    def __str__(self) -> str:
        return f"samples {self.first} to {self.first + len(self.prompts) - 1}"

    def body(self) -> bytes:
        """JSON that every parser takes."""
        rows = [_plain(row) for row in self.rows]
        return json.dumps({"prompts": self.prompts, "responses": self.responses, "rows": rows}).encode()


class Endpoint:
    """Asks a service for scores: requests of ``batch_size`` samples, ``connections`` at a time, over connections that
    stay open from call to call."""

    def __init__(self, config: EndpointConfig, patience: float) -> None:
        """Args: patience is how many seconds a call may take, with all its attempts."""
        self.config, self.patience = config, patience
        self.name = f"reward endpoint {without_secrets(config.url)}"
        # One loop for good: connections belong to it. It gives requests a real deadline, which no socket timeout is.
        self.loop = asyncio.Runner()
        limits = httpx.Limits(
            max_connections=config.connections,
            max_keepalive_connections=config.connections,
            keepalive_expiry=IDLE_SECONDS,
        )
        headers = {"Content-Type": "application/json", "Accept-Encoding": "identity", **_authorization()}
        try:
            httpx.URL(config.url)
            self.client = httpx.AsyncClient(limits=limits, headers=headers, timeout=None, follow_redirects=False)
        except (ValueError, OSError, httpx.InvalidURL) as error:  # also of what the environment says of proxies
            why, fix = without_secrets(str(error)), "mend the url in the recipe, or HTTP_PROXY and the like"
            raise UserError(f"{self.name} cannot be asked", why, fix) from error

    def __call__(self, prompts: Sequence[str], responses: Sequence[str], rows: Sequence[Row]) -> np.ndarray:
        """(n,) float64 scores of n responses; NaN for those that were given up, where ``on_failure`` is ``drop``.

        Raises:
            MachineryError: the service could not be asked, and ``on_failure`` is not ``drop``.
            UserError: the service refused the request, or answered something else than n finite numbers.
        """
        size = self.config.batch_size
        requests = [
            _Request(first=i, prompts=prompts[i : i + size], responses=responses[i : i + size], rows=rows[i : i + size])
            for i in range(0, len(prompts), size)
        ]
        scores = self.loop.run(self._ask_all(requests))
        return np.concatenate(scores) if scores else np.zeros(0)

    async def _ask_all(self, requests: Sequence[_Request]) -> list[np.ndarray]:
        end = asyncio.get_running_loop().time() + self.patience
        slots = asyncio.Semaphore(self.config.connections)
        try:
            async with asyncio.TaskGroup() as group:  # the first error ends the others
                tasks = [group.create_task(self._ask(request, slots, end)) for request in requests]
        except ExceptionGroup as errors:
            raise errors.exceptions[0] from None
        return [task.result() for task in tasks]

    async def _ask(self, request: _Request, slots: asyncio.Semaphore, end: float) -> np.ndarray:
        """One request with its attempts, none of which outlasts ``end`` (seconds on the loop's clock)."""

        def stop(state: RetryCallState) -> bool:
            if asyncio.get_running_loop().time() + state.upcoming_sleep >= end:
                return True
            return self.config.on_failure != "retry" and state.attempt_number > self.config.retries

        retrying = AsyncRetrying(stop=stop, wait=_wait, retry=retry_if_exception_type(_Passing))
        try:
            return await retrying(self._attempt, request, slots, end)
        except RetryError as error:
            return self._give_up(request, error.last_attempt.attempt_number, str(error.last_attempt.exception()))

    def _give_up(self, request: _Request, attempts: int, reason: str) -> np.ndarray:
        what = f"{self.name} gave no scores for {request} of a block after {attempts} attempts; the last: {reason}"
        if self.config.on_failure == "drop":
            print(f"{what}. They are left out.", flush=True)
            return np.full(len(request.prompts), np.nan)
        raise MachineryError(
            f"{what}. Is the service running, and reachable from the machine of this log? Its batch_size, "
            "timeout_seconds, retries and on_failure are in the recipe, under endpoint."
        )

    async def _attempt(self, request: _Request, slots: asyncio.Semaphore, end: float) -> np.ndarray:
        async with slots:
            deadline = min(asyncio.get_running_loop().time() + self.config.timeout_seconds, end)
            try:
                async with asyncio.timeout_at(deadline):
                    status, body = await self._post(request)
            except TimeoutError:
                raise _Passing(f"no answer within {self.config.timeout_seconds:g} s") from None
            except httpx.TransportError as error:
                raise _Passing(f"{type(error).__name__}: {error}") from None
            except httpx.DecodingError as error:
                why = f"it was asked not to pack its answers, and packed one wrongly: {error}"
                raise self._fault(request, "what cannot be unpacked", why) from None
        return self._read(request, status, body)

    async def _post(self, request: _Request) -> tuple[int, bytes]:
        """Status and body of the answer."""
        longest = ANSWER_BYTES + SCORE_BYTES * len(request.prompts)
        async with self.client.stream("POST", self.config.url, content=request.body()) as answer:
            if answer.status_code in PASSING_STATUS or answer.status_code >= 500:
                raise _Passing(f"HTTP {answer.status_code}", _seconds(answer.headers.get("Retry-After")))
            body = b""
            async for piece in answer.aiter_bytes():
                body += piece
                if len(body) > longest:
                    raise self._fault(request, f"more than {longest:,} bytes", CONTRACT)
        return answer.status_code, body

    def _read(self, request: _Request, status: int, body: bytes) -> np.ndarray:
        text = body[:200].decode("utf-8", errors="replace")
        if status // 100 == 3:
            raise self._fault(request, f"HTTP {status}", "redirects are not followed: they could lead anywhere")
        if status // 100 != 2:
            raise self._fault(request, f"HTTP {status}", f"the service refuses the request: {text!r}")
        try:
            answer = json.loads(body)
        except (ValueError, RecursionError):
            raise self._fault(request, f"no JSON: {text!r:.80}", CONTRACT) from None
        if not isinstance(answer, dict) or "scores" not in answer:
            raise self._fault(request, f"no scores: {text!r:.80}", CONTRACT)

        return check_scores(answer["scores"], request.prompts, None, CONTRACT, self._error, request.first)

    def _error(self, what: str, why: str) -> UserError:
        return UserError(f"{self.name} {what}", why, "mend the service; nothing else is at fault")

    def _fault(self, request: _Request, answered: str, why: str) -> UserError:
        first = name_sample(0, request.prompts, None, request.first)
        what = f"{self.name} answered {request} of a block with {answered}; {first}"
        return UserError(what, why, "mend the service, or the url in the recipe")


def _authorization() -> dict[str, str]:
    token = os.environ.get(TOKEN, "").strip()
    if not token:
        return {}
    if not (token.isascii() and token.isprintable()):  # as a header it would be refused with its value in the message
        raise UserError(f"the environment variable {TOKEN} is no token", "it holds characters that no header may have")
    return {"Authorization": f"Bearer {token}"}


def _wait(state: RetryCallState) -> float:
    """Seconds before the next attempt: twice the last, or as long as the service asks."""
    failure = state.outcome.exception() if state.outcome else None
    asked = failure.wait if isinstance(failure, _Passing) else 0.0
    doubled = wait_exponential_jitter(multiplier=FIRST_WAIT, max=LONGEST_WAIT, jitter=FIRST_WAIT)(state)
    return max(doubled, min(asked, LONGEST_WAIT))


def _seconds(header: str | None) -> float:
    """``Retry-After`` in seconds; a date in its place is not waited for."""
    return float(header) if header and header.isascii() and header.isdigit() else 0.0


def _plain(value: Any) -> Any:
    """What JSON knows: a number that is not finite becomes null, and any other thing (a date, bytes) its text."""
    if isinstance(value, Mapping):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(inner) for inner in value]
    if isinstance(value, float):
        return value if np.isfinite(value) else None
    return value if value is None or isinstance(value, (str, int)) else str(value)
