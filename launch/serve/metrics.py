"""The gateway's metrics for Prometheus."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    disable_created_metrics,
    generate_latest,
)

SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
"""Upper bounds of the histograms' buckets."""


class GatewayMetrics:
    """All metrics, in a registry of their own; none has a label whose values a client chooses."""

    def __init__(self, running: Callable[[], float], waiting: Callable[[], float]) -> None:
        disable_created_metrics()
        self.collectors = made = CollectorRegistry()
        self.requests = Counter(
            "rlhf_gateway_requests", "answered requests", ["stage", "version", "outcome"], registry=made
        )
        self.refused = Counter("rlhf_gateway_refused", "requests that got an error", ["code"], registry=made)
        self.seconds = Histogram(
            "rlhf_gateway_seconds", "duration of a request", ["stage"], buckets=SECONDS, registry=made
        )
        self.first_byte = Histogram(
            "rlhf_gateway_first_byte_seconds",
            "until the server's first byte",
            ["stage"],
            buckets=SECONDS,
            registry=made,
        )
        self.fallbacks = Counter(
            "rlhf_gateway_fallbacks", "requests of the canary that production answered", ["reason"], registry=made
        )
        self.returns = Counter("rlhf_gateway_returns", "canaries withdrawn by a broken KPI", ["kpi"], registry=made)
        self.shadow = Counter("rlhf_gateway_shadow", "copies of requests for the shadow", ["outcome"], registry=made)
        self.scores = Counter("rlhf_gateway_scores", "scored answers", ["version", "verdict"], registry=made)
        self.thumbs = Counter("rlhf_gateway_thumbs", "thumbs of users", ["version", "thumb"], registry=made)
        self.failures = Counter("rlhf_gateway_failures", "failures of the gateway's own work", ["work"], registry=made)
        self.serving = Gauge("rlhf_gateway_serving", "versions in service", ["stage", "version"], registry=made)
        self.revision = Gauge("rlhf_gateway_registry_revision", "newest entry of the registry", registry=made)
        Gauge("rlhf_gateway_running", "requests in progress", registry=made).set_function(running)
        Gauge("rlhf_gateway_waiting", "requests that wait for their turn", registry=made).set_function(waiting)

    def render(self) -> bytes:
        """The metrics in Prometheus's text format."""
        return generate_latest(self.collectors)
