"""Copies of requests for the shadow. They start when the user has the answer, and nothing waits for them."""

from __future__ import annotations

import asyncio
import json
import random
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from launch.serve.exchange import Exchange
from launch.serve.http import describe_without_content
from launch.serve.metrics import GatewayMetrics
from launch.serve.roles import Roles
from launch.serve.scoring import AnswerScoring
from launch.serve.upstream import Upstream, UpstreamFailure
from rlhf.serving.completions import MALFORMED, parse_answer, prompt_text
from rlhf.serving.gateway_config import GatewayConfig
from rlhf.serving.live_kpi import Kpi

STREAMING = ("stream", "stream_options")
"""Fields that ask for a stream."""


@dataclass(frozen=True, kw_only=True)
class _Copy:
    """What a copy needs of a request; its answer is not kept for it."""

    id: str
    path: str
    request: bytes


class Shadow:
    """The queue of copies, and the workers that send them over connections of their own."""

    def __init__(
        self, config: GatewayConfig, roles: Roles, metrics: GatewayMetrics, scoring: AnswerScoring | None = None
    ) -> None:
        self._config, self._roles, self._metrics, self._scoring = config, roles, metrics, scoring
        self._random = random.Random(config.seed)
        self._queue: asyncio.Queue[_Copy] = asyncio.Queue(config.shadow.waiting)

    def add(self, exchange: Exchange) -> None:
        """Queue a copy, if there is a shadow; dropped and counted if the queue is full."""
        if self._roles.shadow is None or self._random.random() >= self._config.shadow.share:
            return
        try:
            self._queue.put_nowait(_Copy(id=exchange.id, path=exchange.path, request=exchange.request))
        except asyncio.QueueFull:
            self._metrics.shadow.labels("dropped").inc()

    async def work(self) -> None:
        """Send queued copies until cancelled."""
        client = Upstream(self._config.timeouts.connect_seconds, self._config.shadow.concurrent)
        client.open()
        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(self._config.shadow.concurrent):
                    group.create_task(self._send_all(client))
        finally:
            await client.close()

    async def _send_all(self, client: Upstream) -> None:
        while True:
            copy = await self._queue.get()
            try:
                outcome = await self._send(client, copy)
            except Exception as error:  # one copy ends no worker
                print(f"gateway: a copy failed: {describe_without_content(error)}", file=sys.stderr, flush=True)
                outcome = "failed"
            self._metrics.shadow.labels(outcome).inc()

    async def _send(self, client: Upstream, copy: _Copy) -> str:
        """Send a copy and count what comes of it; returns the outcome as a label."""
        arm = self._roles.shadow
        if arm is None:
            return "dropped"
        seconds, body = self._config.shadow.seconds, json.loads(copy.request)
        try:
            async with client.post(
                arm,
                arm.order()[0],
                copy.path,
                _whole_answer(body),
                f"shadow-{copy.id}",
                first_seconds=seconds,
                total_seconds=seconds,
            ) as answer:
                if answer.status != 200:
                    raise UpstreamFailure("status", str(answer.status))
                found = parse_answer(await answer.read(self._config.limits.answer_bytes), is_stream=False)
        except (UpstreamFailure, *MALFORMED):
            self._roles.record(arm.digest, Kpi.ERRORS, True)
            return "failed"
        self._roles.record(arm.digest, Kpi.ERRORS, False)
        if self._scoring is not None:
            await self._score(self._scoring, body, found.texts, arm.version, arm.digest)
        return "answered"

    async def _score(
        self, scoring: AnswerScoring, body: Mapping[str, Any], texts: tuple[str, ...], version: str, digest: str
    ) -> None:
        prompt = prompt_text(body)
        if prompt is not None and (score := await scoring.score_later(prompt, texts)) is not None:
            scoring.record(version, digest, score)


def _whole_answer(body: Mapping[str, Any]) -> bytes:
    """The request for a whole answer, which costs the gateway less than a stream."""
    return json.dumps({name: value for name, value in body.items() if name not in STREAMING}).encode()
