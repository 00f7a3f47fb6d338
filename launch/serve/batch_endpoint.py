"""A batch against an OpenAI-compatible service: bounded concurrency and memory, retries, rows in order."""

from __future__ import annotations

import asyncio
import json
import signal
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any

import httpx
from tenacity import AsyncRetrying, RetryCallState, RetryError, retry_if_exception_type

from rlhf.errors import MachineryError, UserError
from rlhf.http_retries import IDLE_SECONDS, TransientError, bearer, post, seconds_to_wait
from rlhf.secrets import excerpt, without_secrets
from rlhf.serving.batch_output import BatchOutput
from rlhf.serving.batch_rows import BatchResult, BatchRow, output_row, parse_completion

KEY = "RLHF_BATCH_KEY"
"""Environment variable with the service's API key; it is sent and never written."""
REFUSED_STATUS = (401, 403, 404)
"""The whole service is meant wrongly; other statuses concern one row."""
LONGEST_ANSWER = 2**24
WINDOW = 4
"""Rows in progress or finished and not yet written, per connection: what is held in memory."""
FLUSH_ROWS = 64
"""Rows that are written and flushed to the disk together."""
FEWEST_FAILURES = 20
"""Consecutive failures of the connection, in the order of the rows, that are taken for an outage."""
MOST_HELD = 1000
"""Outcomes that are held back at most."""
SHOWN = 200
SIGNALS = (signal.SIGTERM, signal.SIGINT)


@dataclass(frozen=True, kw_only=True)
class EndpointJob:
    """The service and how it is asked."""

    url: str
    """Address up to ``/v1``."""
    model: str
    sampling: Mapping[str, Any]
    """Fields that every row's request has unless the row itself sets them."""
    concurrency: int
    retries: int
    timeout_seconds: float


class _Source(Enum):
    """Where an outcome comes from."""

    SERVICE = auto()
    """The service answered, perhaps with a refusal of this row."""
    FILE = auto()
    """The row is malformed: the service was not asked."""
    OUTAGE = auto()
    """The service could not be reached, or failed itself, in every attempt."""


@dataclass(frozen=True, kw_only=True)
class _RowOutcome:
    row: BatchRow
    result: BatchResult
    source: _Source


class _Writer:
    """Writes outcomes in order. Those from the first failure on that may be an outage are held back until the service
    answers a later row: after an outage these rows are asked again."""

    def __init__(self, output: BatchOutput, report: Callable[[int], None]) -> None:
        self._output, self._report = output, report
        self._ready: list[dict[str, Any]] = []
        self._held: list[_RowOutcome] = []
        self.outages: list[_RowOutcome] = []
        """The held ones that may be an outage."""

    def add(self, outcome: _RowOutcome) -> None:
        """Take the next row's outcome."""
        self._held.append(outcome)
        if outcome.source is _Source.OUTAGE:
            self.outages.append(outcome)
        if outcome.source is _Source.SERVICE or not self.outages or len(self._held) >= MOST_HELD:
            self.release()

    def release(self) -> None:
        """Take what was held back as failures of single rows."""
        self._ready += [output_row(each.row, each.result) for each in self._held]
        self._held, self.outages = [], []
        if len(self._ready) >= FLUSH_ROWS:
            self.flush()

    def flush(self) -> None:
        """Write to the disk."""
        if self._ready:
            self._output.append(self._ready)
            self._ready = []
            self._report(self._output.done)


async def _first(window: deque[asyncio.Task[_RowOutcome]]) -> _RowOutcome:
    """The first row's outcome; the row leaves the window only when it has one."""
    outcome = await window[0]
    window.popleft()
    return outcome


class EndpointBatch:
    """Asks the service for every row."""

    def __init__(self, job: EndpointJob) -> None:
        """Prepare the client; no connection is opened yet.

        Raises:
            UserError: the address, proxy settings or key cannot be used.
        """
        self._job, self._signal = job, ""
        self._name = without_secrets(job.url)
        self._limit = max(FEWEST_FAILURES, 2 * job.concurrency)
        limits = httpx.Limits(max_connections=job.concurrency, keepalive_expiry=IDLE_SECONDS)
        headers = {"Content-Type": "application/json", **bearer(KEY)}
        try:
            self._client = httpx.AsyncClient(limits=limits, headers=headers, timeout=None, follow_redirects=False)
        except (ValueError, OSError, httpx.InvalidURL) as error:
            fix = "correct --endpoint, or HTTP_PROXY and similar variables"
            raise UserError(f"{self._name} cannot be used", without_secrets(str(error)), fix) from None

    async def run(self, rows: Iterable[BatchRow], output: BatchOutput, report: Callable[[int], None]) -> str:
        """Answer rows in order until they end, or until SIGTERM or SIGINT; what is finished is written in any case.

        Returns the signal's name, or an empty text.

        Raises:
            UserError: the service refuses the key, the model or the address.
            MachineryError: the service is down; unwritten rows are asked in the next run.
        """
        work = asyncio.create_task(self._ask_all(rows, output, report))
        loop = asyncio.get_running_loop()
        for number in SIGNALS:
            loop.add_signal_handler(number, self._stop, number, work)
        try:
            await work
        except asyncio.CancelledError:
            if not self._signal:
                raise
        finally:
            for number in SIGNALS:
                loop.remove_signal_handler(number)  # a second signal ends the process
            await self._client.aclose()
        return self._signal

    def _stop(self, number: signal.Signals, work: asyncio.Task[None]) -> None:
        self._signal = number.name
        asyncio.get_running_loop().remove_signal_handler(number)
        work.cancel()

    async def _ask_all(self, rows: Iterable[BatchRow], output: BatchOutput, report: Callable[[int], None]) -> None:
        slots, window = asyncio.Semaphore(self._job.concurrency), deque[asyncio.Task[_RowOutcome]]()
        writer = _Writer(output, report)
        try:
            for row in rows:
                window.append(asyncio.create_task(self._answer(row, slots)))
                while len(window) >= WINDOW * self._job.concurrency or (window and window[0].done()):
                    self._write(writer, await _first(window))
                await asyncio.sleep(0)  # rows without a request need no wait, and others should begin
            while window:
                self._write(writer, await _first(window))
            if writer.outages and not await self._is_up():
                raise self._outage(writer.outages)
            writer.release()
        finally:
            for task in window:
                task.cancel()
            await asyncio.gather(*window, return_exceptions=True)
            writer.flush()

    def _write(self, writer: _Writer, outcome: _RowOutcome) -> None:
        writer.add(outcome)
        if len(writer.outages) >= self._limit:
            raise self._outage(writer.outages)

    def _outage(self, outages: list[_RowOutcome]) -> MachineryError:
        last = outages[-1].result.failure
        return MachineryError(
            f"{self._name} does not answer: {len(outages)} rows in a row failed, last: {last}; "
            "the same command goes on where this one ended"
        )

    async def _answer(self, row: BatchRow, slots: asyncio.Semaphore) -> _RowOutcome:
        if row.body is None:
            fault = BatchResult(failure=f"line {row.line}: {row.fault}")
            return _RowOutcome(row=row, result=fault, source=_Source.FILE)
        content = json.dumps({"model": self._job.model, **self._job.sampling, **row.body}).encode()

        def stop(state: RetryCallState) -> bool:
            return state.attempt_number > self._job.retries

        retrying = AsyncRetrying(stop=stop, wait=seconds_to_wait, retry=retry_if_exception_type(TransientError))
        status: int
        body: bytes
        try:
            status, body = await retrying(self._attempt, row.path, content, slots)
        except RetryError as error:
            attempts, last = error.last_attempt.attempt_number, error.last_attempt.exception()
            failure = f"no answer after {attempts} attempts: {without_secrets(str(last))}"
            return _RowOutcome(row=row, result=BatchResult(failure=failure), source=_Source.OUTAGE)
        return _RowOutcome(row=row, result=self._parse(row, status, body), source=_Source.SERVICE)

    async def _attempt(self, path: str, content: bytes, slots: asyncio.Semaphore) -> tuple[int, bytes]:
        url = self._job.url.rstrip("/") + path.removeprefix("/v1")
        async with slots:
            try:
                async with asyncio.timeout(self._job.timeout_seconds):
                    status, body = await post(self._client, url, content, LONGEST_ANSWER)
            except TimeoutError:
                raise TransientError(f"no answer within {self._job.timeout_seconds:g} s") from None
            except (httpx.TransportError, httpx.DecodingError) as error:
                raise TransientError(f"{type(error).__name__}: {error}") from None
        return (413, b"the answer is too long") if body is None else (status, body)

    def _parse(self, row: BatchRow, status: int, body: bytes) -> BatchResult:
        is_own_model = row.body is not None and "model" in row.body and status == 404
        if (status in REFUSED_STATUS and not is_own_model) or status // 100 == 3:
            fix = f"correct --endpoint or --model, or put a valid key into the variable {KEY}"
            raise UserError(f"{self._name} refuses requests with HTTP {status}", excerpt(body, SHOWN), fix)
        if status == 200:
            return parse_completion(body)
        return BatchResult(status=status, failure=f"HTTP {status}: {excerpt(body, SHOWN)}")

    async def _is_up(self) -> bool:
        """Whether the service answers at all, whatever it says."""
        try:
            async with asyncio.timeout(self._job.timeout_seconds):
                answer = await self._client.get(f"{self._job.url.rstrip('/')}/models")
        except (TimeoutError, httpx.HTTPError):
            return False
        return answer.status_code < 500
