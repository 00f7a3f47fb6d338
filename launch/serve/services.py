"""The parts of a running gateway, put together, started and ended."""

from __future__ import annotations

import asyncio
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from launch.serve.admission import Admission
from launch.serve.exchange import Exchange
from launch.serve.metrics import GatewayMetrics
from launch.serve.reconciler import Reconciler
from launch.serve.relay import Relay
from launch.serve.request_log import RequestLog
from launch.serve.roles import Roles
from launch.serve.scoring import AnswerScoring
from launch.serve.shadow import Shadow
from launch.serve.thumbs import Thumbs
from launch.serve.upstream import Upstream
from rlhf.errors import MachineryError, UserError
from rlhf.serving.api_keys import read_keys, require_keys
from rlhf.serving.gateway_config import GatewayConfig
from rlhf.serving.gateway_state import GatewayState
from rlhf.serving.live_counts import CountRow
from rlhf.serving.recent_answers import AnswerChanges
from rlhf.serving.registry import Registry

if TYPE_CHECKING:
    from launch.serve.tracing import Tracing

STATE_SECONDS = 2.0
"""Seconds between two writes of the state: a killed gateway loses the last ones."""
KEYS_SECONDS = 2.0
"""Seconds between two looks at the file of keys."""


class Services:
    """Everything that requests need. Made before the server listens, so that what cannot be used is refused first."""

    def __init__(self, config: GatewayConfig) -> None:
        """Open files and load the scorer.

        Raises:
            UserError: one of them cannot be used.
        """
        self.config = config
        self.keys = require_keys(Path(config.keys))
        self._registry = Registry(Path(config.registry))
        if self._registry.serving().production is None:
            print("no model is in production yet: requests get 503 until one is promoted", file=sys.stderr)
        self.admission = Admission(config.limits, time.monotonic)
        self.metrics = GatewayMetrics(lambda: self.admission.running, lambda: self.admission.waiting)
        self.roles = Roles(config, self.metrics, time.monotonic)
        scorer = config.scorer
        self._scoring = AnswerScoring(scorer, self.roles, self.metrics, config.seed) if scorer else None
        self.thumbs = Thumbs(config.thumbs, config.state is not None) if config.thumbs else None
        self._state = self._restored(Path(config.state)) if config.state else None
        self._saved_counts: list[CountRow] = []
        self._log = RequestLog(Path(config.log), config.log_content) if config.log else None
        self._tracing = _tracing(config)
        self._upstream = Upstream(config.timeouts.connect_seconds)
        self._shadow = Shadow(config, self.roles, self.metrics, self._scoring)
        self.relay = Relay(config, self.roles, self._upstream, self._scoring, time.monotonic)
        self._reconciler = Reconciler(config, self._registry, self.roles, self.metrics, self._upstream)
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def keeps_answers(self) -> bool:
        """Whether answers are needed after they were sent."""
        scores_later = self._scoring is not None and self.config.canary.check != "off"
        return self.thumbs is not None or scores_later or (self._log is not None and self.config.log_content)

    def _restored(self, path: Path) -> GatewayState:
        """The state of an earlier gateway, taken over."""
        state = GatewayState(path)
        self.roles.counts.add(state.counts())
        if self.thumbs is not None:
            self.thumbs.answers.restore(state.answers())
        return state

    def start(self) -> None:
        """Open connections and start the work in the background; needs the running event loop."""
        self._upstream.open()
        work = [self._reconciler.run(), self._shadow.work(), self._watch_keys()]
        if self._scoring is not None:
            work.append(self._scoring.work())
        if self._state is not None:
            work.append(self._keep_state(self._state))
        self._tasks = [asyncio.create_task(each) for each in work]

    async def close(self) -> None:
        """End the work, stop the servers that the gateway started, and close all files."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._reconciler.close()
        await self._upstream.close()
        if self._state is not None:
            await self._save(self._state)
            self._state.close()
        for service in (self.thumbs, self._log, self._registry):
            if service is not None:
                service.close()
        if self._tracing is not None:
            await asyncio.to_thread(self._tracing.close)

    def remember(self, exchange: Exchange) -> None:
        """Keep a good answer for its thumb, in the step that sent its end: the thumb may come in the next one."""
        if self.thumbs is not None and exchange.outcome == "answered" and exchange.status == 200:
            self.thumbs.remember(exchange)

    def finish(self, exchange: Exchange) -> None:
        """Count, log and copy a request that is over. The client has its answer; nothing here waits."""
        exchange.ended = time.monotonic()
        outcome = exchange.outcome or "refused"
        self.metrics.requests.labels(exchange.stage, exchange.version, outcome).inc()
        self.metrics.seconds.labels(exchange.stage).observe(exchange.ended - exchange.began)
        if exchange.first_seconds is not None:
            self.metrics.first_byte.labels(exchange.stage).observe(exchange.first_seconds)
        if exchange.fallback:
            self.metrics.fallbacks.labels(exchange.fallback).inc()
        if exchange.outcome == "answered" and exchange.status == 200:
            self._shadow.add(exchange)
            self._score(exchange)
        if self._log is not None and not self._log.write(exchange):
            self.metrics.failures.labels("log").inc()
        if self._tracing is not None:
            self._tracing.add(exchange)

    def _score(self, exchange: Exchange) -> None:
        """Have an answer scored, unless it was scored before it was sent."""
        if self._scoring is not None and self.config.canary.check != "off" and not exchange.is_scored:
            self._scoring.add(exchange)

    async def _keep_state(self, state: GatewayState) -> None:
        while True:
            await asyncio.sleep(STATE_SECONDS)
            await self._save(state)

    async def _save(self, state: GatewayState) -> None:
        """Write what changed; users are served also if that fails."""
        counts = self.roles.counts.rows()
        changes = self.thumbs.answers.changes() if self.thumbs is not None else AnswerChanges()
        if counts == self._saved_counts and changes == AnswerChanges():
            return
        self._saved_counts = counts
        try:
            await asyncio.to_thread(state.save, counts, changes)
        except MachineryError as error:
            self.metrics.failures.labels("state").inc()
            print(f"gateway: {error}", file=sys.stderr, flush=True)

    async def _watch_keys(self) -> None:
        """Read the keys again when their file changes, so that a revoked key ends without a restart."""
        path, seen = Path(self.config.keys), None
        while True:
            with suppress(OSError):
                found = path.stat()
                if (found.st_mtime_ns, found.st_ino) != seen:
                    seen = (found.st_mtime_ns, found.st_ino)
                    try:
                        self.keys = read_keys(path)
                    except UserError as error:
                        print(f"gateway: the keys stay as they were: {error.what}", file=sys.stderr, flush=True)
            await asyncio.sleep(KEYS_SECONDS)


def _tracing(config: GatewayConfig) -> Tracing | None:
    """The exporter of spans, whose packages are imported only if a collector is named."""
    if config.opentelemetry is None:
        return None
    from launch.serve.tracing import Tracing

    return Tracing(config.opentelemetry, config.model)
