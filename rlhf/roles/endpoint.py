"""Client of an HTTP service that scores responses. Distinguishes two kinds of failure:

- transient: no connection, no answer in time, or status 408, 425, 429 or 5xx. The request is retried; after the last
  attempt ``on_failure`` applies.
- permanent: any other status but 2xx, or an answer that is not JSON with one finite number per response. The run stops
  and names the sample, regardless of ``on_failure``.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import httpx
import numpy as np
from tenacity import AsyncRetrying, RetryCallState, RetryError, retry_if_exception_type

from rlhf.config.schema import EndpointConfig
from rlhf.errors import MachineryError, UserError
from rlhf.evaluation.score_checks import check_scores, name_sample
from rlhf.http_retries import IDLE_SECONDS, TransientError, bearer, post, seconds_to_wait
from rlhf.secrets import excerpt, without_secrets
from rlhf.storage.jsonl import json_safe

TOKEN = "RLHF_REWARD_TOKEN"
"""Environment variable whose value is sent as ``Authorization: Bearer``; it is never written to a file or message."""
CONTRACT = 'the answer must be {"scores": [...]}, one finite number per response, in order'
ANSWER_BYTES, SCORE_BYTES = 2**16, 2**10
"""Largest answer that is read: ``ANSWER_BYTES`` plus ``SCORE_BYTES`` per score."""

Row = Mapping[str, object]


@dataclass(frozen=True, kw_only=True)
class _Request:
    """The samples of one request; ``first`` is the index of the first one within the call."""

    first: int
    prompts: Sequence[str]
    responses: Sequence[str]
    rows: Sequence[Row]

    def __str__(self) -> str:
        return f"samples {self.first} to {self.first + len(self.prompts) - 1}"

    def body(self) -> bytes:
        """The request's body as standard JSON."""
        content = {"prompts": self.prompts, "responses": self.responses, "rows": json_safe(list(self.rows))}
        return json.dumps(content).encode()


class Endpoint:
    """Requests scores: ``batch_size`` samples per request, over up to ``connections`` keep-alive connections."""

    def __init__(self, config: EndpointConfig, deadline: float) -> None:
        """Prepare the client; no connection is opened yet.

        Args:
            deadline: longest duration of a call with all its attempts, in seconds.

        Raises:
            UserError: the url, the proxy settings or the token in the environment are not usable.
        """
        self.config, self.deadline = config, deadline
        self.name = f"reward endpoint {without_secrets(config.url)}"
        # One loop for all calls, because connections belong to a loop. A loop can enforce a deadline per request, which
        # a socket timeout cannot.
        self.loop = asyncio.Runner()
        limits = httpx.Limits(
            max_connections=config.connections,
            max_keepalive_connections=config.connections,
            keepalive_expiry=IDLE_SECONDS,
        )
        headers = {"Content-Type": "application/json", "Accept-Encoding": "identity", **bearer(TOKEN)}
        try:
            httpx.URL(config.url)
            self.client = httpx.AsyncClient(limits=limits, headers=headers, timeout=None, follow_redirects=False)
        except (ValueError, OSError, httpx.InvalidURL) as error:  # also raised for proxy settings in the environment
            why, fix = without_secrets(str(error)), "correct the url in the recipe, or HTTP_PROXY and similar variables"
            raise UserError(f"{self.name} cannot be used", why, fix) from error

    def __call__(self, prompts: Sequence[str], responses: Sequence[str], rows: Sequence[Row]) -> np.ndarray:
        """(n,) float64 scores of n responses; NaN for failed requests if ``on_failure`` is ``drop``.

        Raises:
            MachineryError: all attempts of a request failed, and ``on_failure`` is not ``drop``.
            UserError: the service refused a request, or its answer is not one finite number per response.
        """
        size = self.config.batch_size
        requests = [
            _Request(first=i, prompts=prompts[i : i + size], responses=responses[i : i + size], rows=rows[i : i + size])
            for i in range(0, len(prompts), size)
        ]
        scores = self.loop.run(self._score_all(requests))
        return np.concatenate(scores) if scores else np.zeros(0)

    async def _score_all(self, requests: Sequence[_Request]) -> list[np.ndarray]:
        end = asyncio.get_running_loop().time() + self.deadline
        slots = asyncio.Semaphore(self.config.connections)
        try:
            async with asyncio.TaskGroup() as group:  # the first error cancels the other requests
                tasks = [group.create_task(self._score(request, slots, end)) for request in requests]
        except ExceptionGroup as errors:
            raise errors.exceptions[0] from None
        return [task.result() for task in tasks]

    async def _score(self, request: _Request, slots: asyncio.Semaphore, end: float) -> np.ndarray:
        """Scores of one request after as many attempts as needed; all finish before ``end`` on the loop's clock."""

        def stop(state: RetryCallState) -> bool:
            if asyncio.get_running_loop().time() + state.upcoming_sleep >= end:
                return True
            return self.config.on_failure != "retry" and state.attempt_number > self.config.retries

        retrying = AsyncRetrying(stop=stop, wait=seconds_to_wait, retry=retry_if_exception_type(TransientError))
        try:
            return await retrying(self._attempt, request, slots, end)
        except RetryError as error:
            return self._give_up(request, error.last_attempt.attempt_number, str(error.last_attempt.exception()))

    def _give_up(self, request: _Request, attempts: int, reason: str) -> np.ndarray:
        what = f"{self.name} gave no scores for {request} of a block after {attempts} attempts; last error: {reason}"
        if self.config.on_failure == "drop":
            print(f"{what}. These samples are dropped.", flush=True)
            return np.full(len(request.prompts), np.nan)
        raise MachineryError(
            f"{what}. Check that the service is running and reachable from this node. Its batch_size, "
            "timeout_seconds, retries and on_failure are set in the recipe, under endpoint."
        )

    async def _attempt(self, request: _Request, slots: asyncio.Semaphore, end: float) -> np.ndarray:
        async with slots:
            deadline = min(asyncio.get_running_loop().time() + self.config.timeout_seconds, end)
            try:
                async with asyncio.timeout_at(deadline):
                    status, body = await self._post(request)
            except TimeoutError:
                raise TransientError(f"no answer within {self.config.timeout_seconds:g} s") from None
            except httpx.TransportError as error:
                raise TransientError(f"{type(error).__name__}: {error}") from None
            except httpx.DecodingError as error:
                why = f"the request asks for no compression, and the answer is compressed incorrectly: {error}"
                raise self._refusal(request, "a body that cannot be decompressed", why) from None
        return self._parse(request, status, body)

    async def _post(self, request: _Request) -> tuple[int, bytes]:
        """Send the request; returns status and body of the answer."""
        longest = ANSWER_BYTES + SCORE_BYTES * len(request.prompts)
        status, body = await post(self.client, self.config.url, request.body(), longest)
        if body is None:
            raise self._refusal(request, f"more than {longest:,} bytes", CONTRACT)
        return status, body

    def _parse(self, request: _Request, status: int, body: bytes) -> np.ndarray:
        if status // 100 == 3:
            raise self._refusal(
                request, f"HTTP {status}", "redirects are not followed, because they could lead to any host"
            )
        if status // 100 != 2:
            raise self._refusal(request, f"HTTP {status}", f"the service refuses the request: {excerpt(body, 200)!r}")
        try:
            answer = json.loads(body)
        except (ValueError, RecursionError):
            raise self._refusal(request, f"a body that is not JSON: {excerpt(body, 200)!r:.80}", CONTRACT) from None
        if not isinstance(answer, dict) or "scores" not in answer:
            raise self._refusal(request, f"a body without scores: {excerpt(body, 200)!r:.80}", CONTRACT)
        return check_scores(answer["scores"], request.prompts, None, CONTRACT, self._error, request.first)

    def _error(self, what: str, why: str) -> UserError:
        return UserError(f"{self.name} {what}", why, "correct the service")

    def _refusal(self, request: _Request, answered: str, why: str) -> UserError:
        first = name_sample(0, request.prompts, None, request.first)
        what = f"{self.name} answered {request} of a block with {answered}; {first}"
        return UserError(what, why, "correct the service, or the url in the recipe")
