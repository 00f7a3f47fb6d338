"""Spans as a real collector would get them: OTLP over HTTP, decoded by OpenTelemetry's own protobuf messages."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from rlhf.tracking.spans import Span
from rlhf.tracking.telemetry import Telemetry


class Collector(ThreadingHTTPServer):
    """Takes spans on 127.0.0.1; answers with ``status``."""

    status = 200

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.requests: list[tuple[str, ExportTraceServiceRequest]] = []
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def spans(self) -> dict[str, Any]:
        """By name: the span, and under ``<name> of`` the attributes of its resource."""
        found: dict[str, Any] = {}
        for _, request in self.requests:
            for resource in request.resource_spans:
                about = {item.key: item.value.string_value for item in resource.resource.attributes}
                for span in (span for scope in resource.scope_spans for span in scope.spans):
                    found[span.name], found[f"{span.name} of"] = span, about
        return found


class Handler(BaseHTTPRequestHandler):
    server: Collector

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.requests.append((self.path, ExportTraceServiceRequest.FromString(body)))
        self.send_response(self.server.status)
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def collector() -> Iterator[Collector]:
    with Collector() as server:
        yield server
        server.shutdown()


def telemetry(endpoint: str, events: list[dict[str, Any]]) -> Telemetry:
    return Telemetry(endpoint, {"rlhf.run": "demo"}, lambda kind, **details: events.append({"kind": kind, **details}))


def span(name: str, begin: float, end: float, step: int | None = None, **details: Any) -> Span:
    return Span(name=name, begin=begin, end=end, step=step, details=details)


def test_a_step_is_a_trace_with_every_actor_below_it(collector: Collector) -> None:
    events: list[dict[str, Any]] = []
    sent = telemetry(collector.address + "/", events)
    # an actor's spans come before the step that they are of has ended
    sent.add("node a", "engine 0", [span("block", 1.0, 2.0, 7, samples=8), span("generate", 1.0, 4.0, 7)])
    sent.add("controller", "controller", [span("rollout", 0.5, 4.5, 7), span("step", 0.0, 9.0, 7)])
    sent.add("node a", "engine 0", [span("start", 0.1, 0.2)])
    sent.close()
    assert {path for path, _ in collector.requests} == {"/v1/traces"}
    found = collector.spans()
    step, rollout, generate, block, start = (found[name] for name in ("step", "rollout", "generate", "block", "start"))
    assert step.parent_span_id == b"" and start.parent_span_id == b""
    assert rollout.parent_span_id == generate.parent_span_id == step.span_id
    assert block.parent_span_id == generate.span_id
    assert {s.trace_id for s in (step, rollout, generate, block)} == {step.trace_id} != {start.trace_id}
    assert (generate.start_time_unix_nano, generate.end_time_unix_nano) == (10**9, 4 * 10**9)
    assert {item.key: item.value.int_value for item in block.attributes} == {"rlhf.step": 7, "rlhf.samples": 8}
    about = found["generate of"]
    assert {name: about[name] for name in ("service.name", "service.instance.id", "rlhf.group", "rlhf.run")} == {
        "service.name": "rlhf",
        "service.instance.id": "engine 0",
        "rlhf.group": "node a",
        "rlhf.run": "demo",
    }
    assert events == []


def test_a_step_that_is_done_again_is_another_trace(collector: Collector) -> None:
    sent = telemetry(collector.address, [])
    sent.add("controller", "controller", [span("step", 0.0, 1.0, 7)])
    sent.add("controller", "controller", [span("step", 2.0, 3.0, 7)])
    sent.close()
    roots = [s for _, r in collector.requests for rs in r.resource_spans for ss in rs.scope_spans for s in ss.spans]
    assert len({root.trace_id for root in roots}) == len({root.span_id for root in roots}) == 2


def test_a_collector_that_refuses_is_one_event_and_no_error(collector: Collector) -> None:
    collector.status = 400
    events: list[dict[str, Any]] = []
    sent = telemetry(collector.address, events)
    sent.add("n", "a", [span("step", 0.0, 1.0, 0)])
    sent.close()
    sent.add("n", "a", [span("step", 1.0, 2.0, 1)])
    assert events == [{"kind": "opentelemetry_failed", "endpoint": collector.address}]
