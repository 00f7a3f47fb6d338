"""Exports the timeline's spans to an OpenTelemetry collector over OTLP/HTTP (``tracking.opentelemetry``).

Every step is one trace: its root is the controller's span ``step``; phases and actors' spans are its descendants. Each
actor is a resource (``service.instance.id``). A failure is an event, and no step waits for an export. This module is
imported only if it is configured.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from threading import Thread
from typing import Any

from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import IdGenerator, ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.sampling import ALWAYS_ON
from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags, Tracer, set_span_in_context

from rlhf.secrets import without_secrets
from rlhf.tracking.spans import Span

ROOT = "step"
"""Name of a step's root span."""
KEPT_STEPS = 16
"""Number of steps for which late spans are still attributed."""
QUEUE = 2**16
"""Largest number of spans waiting to be sent; beyond it the oldest are dropped."""
PATH = "/v1/traces"
SEND_SECONDS, CLOSE_SECONDS = 5.0, 5.0
"""Timeout of one request, retries included, and of the last requests at the end of a stage."""


def new_id(bits: int) -> int:
    """Random number other than 0; not from ``random``, which may be seeded, so that ids are unique across runs."""
    return secrets.randbits(bits) or 1


@dataclass(kw_only=True)
class Root:
    """Ids of a step's root span, which its descendants need before it has ended."""

    trace: int = field(default_factory=lambda: new_id(128))
    span: int = field(default_factory=lambda: new_id(64))
    is_sent: bool = False


class Ids(IdGenerator):
    """Generates ids; the next ones are those of ``root`` if it is set."""

    root: Root | None = None

    def generate_trace_id(self) -> int:
        """Return the next trace id; called before ``generate_span_id``."""
        return self.root.trace if self.root is not None else new_id(128)

    def generate_span_id(self) -> int:
        """Return the next span id, and reset ``root``."""
        root, self.root = self.root, None
        return root.span if root is not None else new_id(64)

    def is_trace_id_random(self) -> bool:
        """Return True: all ids are random."""
        return True


class CountingExporter(SpanExporter):
    """Counts failed spans, because the sending thread cannot report events."""

    def __init__(self, to: SpanExporter) -> None:
        self._to, self.failed = to, 0

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Send spans, and count them if that fails."""
        result = self._to.export(spans)
        self.failed += 0 if result is SpanExportResult.SUCCESS else len(spans)
        return result

    def shutdown(self) -> None:
        """Shut the exporter down."""
        self._to.shutdown()


class Telemetry:
    """Exports the spans of a stage. ``report(kind, **details)`` writes an event."""

    def __init__(self, endpoint: str, about: Mapping[str, str], report: Callable[..., None]) -> None:
        """Start the thread that sends spans to a collector.

        Args:
            endpoint: the collector's address without the path.
            about: attributes of every resource.
        """
        logging.getLogger("opentelemetry.exporter").setLevel(logging.CRITICAL)  # failures are reported as events
        self._endpoint, self._about, self._report = endpoint, dict(about), report
        self._exporter = CountingExporter(OTLPSpanExporter(endpoint=endpoint.rstrip("/") + PATH, timeout=SEND_SECONDS))
        self._processor = BatchSpanProcessor(self._exporter, max_queue_size=QUEUE, schedule_delay_millis=2000)
        self._ids = Ids()
        self._tracers: dict[tuple[str, str], Tracer] = {}
        self._roots: dict[int, Root] = {}
        self._is_reported = False

    def add(self, group: str, row: str, spans: Sequence[Span]) -> None:
        """Queue spans with times of ``time.time``; a separate thread sends them."""
        around: list[tuple[Span, Context]] = []
        for span in sorted(spans, key=lambda span: (span.begin, -span.end)):
            while around and around[-1][0].end < span.end:
                around.pop()
            parent = around[-1][1] if around else self._below(span)
            around.append((span, self._send(self._tracer(group, row), span, parent)))
        self._report_failure()

    def close(self) -> None:
        """Send the remaining spans, within ``CLOSE_SECONDS``."""
        closing = Thread(target=self._processor.shutdown, daemon=True)
        closing.start()
        closing.join(CLOSE_SECONDS)
        if closing.is_alive():
            self._exporter.failed += 1
        self._report_failure()

    def _send(self, tracer: Tracer, span: Span, parent: Context) -> Context:
        if span.name == ROOT and span.step is not None:
            self._ids.root, parent = self._root(span.step, is_sent=True), Context()
        sent = tracer.start_span(span.name, parent, attributes=dict(_attributes(span)), start_time=_nano(span.begin))
        sent.end(_nano(span.end))
        return set_span_in_context(sent, Context())

    def _root(self, step: int, is_sent: bool) -> Root:
        known = self._roots.get(step)
        if known is None or (is_sent and known.is_sent):  # a repeated step is a new trace
            known = self._roots[step] = Root()
        known.is_sent |= is_sent
        for old in list(self._roots)[:-KEPT_STEPS]:
            del self._roots[old]
        return known

    def _below(self, span: Span) -> Context:
        """Parent of a span that no other span of its row encloses: the root of its step, if it has one."""
        if span.step is None:
            return Context()
        root, sampled = self._root(span.step, is_sent=False), TraceFlags(TraceFlags.SAMPLED)
        above = SpanContext(trace_id=root.trace, span_id=root.span, is_remote=True, trace_flags=sampled)
        return set_span_in_context(NonRecordingSpan(above), Context())

    def _tracer(self, group: str, row: str) -> Tracer:
        if (group, row) not in self._tracers:
            names = {"service.name": "rlhf", "service.instance.id": row, "rlhf.group": group}
            resource = Resource.create({**names, **self._about})
            provider = TracerProvider(
                sampler=ALWAYS_ON, resource=resource, shutdown_on_exit=False, id_generator=self._ids
            )
            provider.add_span_processor(self._processor)
            self._tracers[group, row] = provider.get_tracer("rlhf")
        return self._tracers[group, row]

    def _report_failure(self) -> None:
        """Report the first failure as an event."""
        if self._exporter.failed and not self._is_reported:
            self._is_reported = True
            self._report("opentelemetry_failed", endpoint=without_secrets(self._endpoint))


def _attributes(span: Span) -> Iterator[tuple[str, Any]]:
    if span.step is not None:
        yield "rlhf.step", span.step
    for name, value in span.details.items():
        yield f"rlhf.{name}", value if isinstance(value, (bool, int, float, str)) else str(value)


def _nano(seconds: float) -> int:
    return round(seconds * 1e9)
