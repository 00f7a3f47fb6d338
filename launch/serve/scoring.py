"""Scores answers by the user's function or service, in threads: before the canary's answer is sent, or afterwards."""

from __future__ import annotations

import asyncio
import random
import sys
import threading
from collections.abc import Callable, Sequence
from typing import Any

from launch.serve.daemon_pool import DaemonPool
from launch.serve.exchange import Exchange
from launch.serve.metrics import GatewayMetrics
from launch.serve.roles import Roles
from rlhf.errors import RLHFError
from rlhf.serving.completions import parse_answer, prompt_text
from rlhf.serving.gateway_config import AnswerScorerConfig
from rlhf.serving.live_kpi import Kpi

SERVICE_THREADS = 8
"""Concurrent requests to a service; a function runs in one thread."""


class AnswerScoring:
    """The scorer, its queue of sent answers, and what becomes of the scores."""

    def __init__(self, config: AnswerScorerConfig, roles: Roles, metrics: GatewayMetrics, seed: int) -> None:
        """Load the scorer.

        Raises:
            UserError: the function or the service cannot be used.
        """
        self._config, self._roles, self._metrics = config, roles, metrics
        self.minimum = config.minimum
        self._random = random.Random(seed)
        self._local = threading.local()
        self._local.scorer = _load(config)  # refuses what cannot be used, at the start
        threads = 1 if config.function else SERVICE_THREADS
        self._before, self._after = DaemonPool(threads), DaemonPool(1)
        """Of their own, so that an answer that waits for its score does not wait for those that were sent."""
        self._queue: asyncio.Queue[Exchange] = asyncio.Queue(config.waiting)
        self._is_failing = False

    async def score(self, prompt: str, responses: Sequence[str]) -> float | None:
        """The lowest score of an answer's choices; None if the scorer failed or took too long."""
        return await self._run(self._before, prompt, responses)

    async def score_later(self, prompt: str, responses: Sequence[str]) -> float | None:
        """As ``score``, of an answer that nobody waits for."""
        return await self._run(self._after, prompt, responses)

    def record(self, version: str, digest: str, score: float) -> None:
        """Count a score."""
        is_low = score < self.minimum
        self._metrics.scores.labels(version, "low" if is_low else "good").inc()
        self._roles.record(digest, Kpi.LOW_SCORES, is_low)

    def add(self, exchange: Exchange) -> None:
        """Queue an answer that was sent, if it is in the share; dropped and counted if the queue is full."""
        if not exchange.has_all or self._random.random() >= self._config.share:
            return
        try:
            self._queue.put_nowait(exchange)
        except asyncio.QueueFull:
            self._metrics.failures.labels("score_dropped").inc()

    async def work(self) -> None:
        """Score queued answers, one after another, until cancelled."""
        while True:
            exchange = await self._queue.get()
            try:
                texts = parse_answer(exchange.raw, exchange.is_stream).texts
            except ValueError:
                continue
            prompt = prompt_text(exchange.body)
            score = await self.score_later(prompt, texts) if prompt is not None else None
            if score is not None:
                self.record(exchange.version, exchange.digest, score)

    async def _run(self, pool: DaemonPool, prompt: str, responses: Sequence[str]) -> float | None:
        """The score, or None. Failures are counted; the first after a score is printed, without its message, which may
        quote an answer."""
        try:
            async with asyncio.timeout(self._config.timeout_seconds):
                score = await pool.run(self._score, prompt, responses)
        except (TimeoutError, RLHFError) as error:
            self._metrics.failures.labels("score").inc()
            if not self._is_failing:
                late = f"gave no score within {self._config.timeout_seconds:g} s"
                what = late if isinstance(error, TimeoutError) else "failed"
                print(f"gateway: the scorer {what}", file=sys.stderr, flush=True)
            self._is_failing = True
            return None
        self._is_failing = False
        return score

    def _score(self, prompt: str, responses: Sequence[str]) -> float:
        """In a thread, which has a scorer of its own."""
        if not hasattr(self._local, "scorer"):
            self._local.scorer = _load(self._config)
        return float(self._local.scorer([prompt] * len(responses), list(responses)).min())


def _load(config: AnswerScorerConfig) -> Callable[[Sequence[str], Sequence[str]], Any]:
    if config.function is not None:
        from rlhf.evaluation.scorers import load_scorer

        return load_scorer(config.function)
    from rlhf.config.schema import EndpointConfig
    from rlhf.roles.endpoint import Endpoint

    assert config.url is not None
    settings = EndpointConfig(url=config.url, connections=1, timeout_seconds=config.timeout_seconds, retries=0)
    endpoint = Endpoint(settings, config.timeout_seconds)
    return lambda prompts, responses: endpoint(prompts, responses, [{} for _ in prompts])
