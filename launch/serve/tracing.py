"""Spans of requests for an OpenTelemetry collector: one trace for each request, with the server's part inside."""

from __future__ import annotations

import sys
import time

from launch.serve.exchange import Exchange
from rlhf.tracking.spans import Span
from rlhf.tracking.telemetry import Telemetry


class Tracing:
    """Sends spans from a thread; no request waits for it."""

    def __init__(self, endpoint: str, model: str) -> None:
        self._telemetry = Telemetry(endpoint, {"rlhf.model": model}, _report)

    def add(self, exchange: Exchange) -> None:
        """Queue the spans of a request that is over."""
        now = time.time() - time.monotonic()
        begin, end = exchange.began + now, exchange.ended + now
        spans = [Span(name=f"POST {exchange.path}", begin=begin, end=end, details=exchange.facts())]
        if exchange.first_seconds is not None:
            first = min(begin + exchange.first_seconds, end)
            spans.append(Span(name="first byte", begin=begin, end=first))
        self._telemetry.add("gateway", "gateway", spans)

    def close(self) -> None:
        """Send what is left, for a few seconds."""
        self._telemetry.close()


def _report(kind: str, **details: object) -> None:
    print(f"gateway: {kind}: {details}", file=sys.stderr, flush=True)
