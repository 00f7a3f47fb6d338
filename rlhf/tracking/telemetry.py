"""The same spans for an OpenTelemetry collector, over OTLP/HTTP, by choice (``tracking.opentelemetry``).

Every step is a trace of its own: its root is the controller's ``step``, and below it stand the phases and what every
actor did. Each actor is a resource, ``service.instance.id``. OpenTelemetry is a guest, as W&B is: what it fails at is
an event, and no step waits for it. Imported only where it is asked for.
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
"""The span that the others of its step stand below."""
KEPT_STEPS = 16
"""Steps for which late spans are still awaited."""
QUEUE = 2**16
"""Spans that wait to be sent; beyond it the oldest are dropped."""
PATH = "/v1/traces"
SEND_SECONDS, CLOSE_SECONDS = 5.0, 5.0
"""How long one request may take, retries included, and how long the last ones may hold up the end of a stage."""


def new_id(bits: int) -> int:
    """A random number other than 0; not by ``random``, which may be seeded: no two runs shall have an id in common."""
    return secrets.randbits(bits) or 1


@dataclass(kw_only=True)
class Root:
    """The ids of a step's root, which are needed before it has ended."""

    trace: int = field(default_factory=lambda: new_id(128))
    span: int = field(default_factory=lambda: new_id(64))
    is_sent: bool = False


class Ids(IdGenerator):
    """Makes ids; the next ones are those of ``root`` where there is one."""

    root: Root | None = None

    def generate_trace_id(self) -> int:
        """Asked for first."""
        return self.root.trace if self.root is not None else new_id(128)

    def generate_span_id(self) -> int:
        """Asked for next."""
        root, self.root = self.root, None
        return root.span if root is not None else new_id(64)

    def is_trace_id_random(self) -> bool:
        """They are."""
        return True


class Counted(SpanExporter):
    """Counts the spans that could not be sent: the thread that sends them is not the one that may report it."""

    def __init__(self, to: SpanExporter) -> None:
        self._to, self.failed = to, 0

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Send them."""
        result = self._to.export(spans)
        self.failed += 0 if result is SpanExportResult.SUCCESS else len(spans)
        return result

    def shutdown(self) -> None:
        """Send no more."""
        self._to.shutdown()


class Telemetry:
    """Exports the spans of a stage. ``report(kind, **details)`` writes an event."""

    def __init__(self, endpoint: str, about: Mapping[str, str], report: Callable[..., None]) -> None:
        """Args: endpoint is a collector's address, without the path; ``about`` are attributes of every resource."""
        logging.getLogger("opentelemetry.exporter").setLevel(logging.CRITICAL)  # its failures are events
        self._endpoint, self._about, self._report = endpoint, dict(about), report
        self._exporter = Counted(OTLPSpanExporter(endpoint=endpoint.rstrip("/") + PATH, timeout=SEND_SECONDS))
        self._processor = BatchSpanProcessor(self._exporter, max_queue_size=QUEUE, schedule_delay_millis=2000)
        self._ids = Ids()
        self._tracers: dict[tuple[str, str], Tracer] = {}
        self._roots: dict[int, Root] = {}
        self._told = False

    def add(self, group: str, row: str, spans: Sequence[Span]) -> None:
        """Hand over spans, whose clock is ``time.time``; they are sent by a thread of their own."""
        around: list[tuple[Span, Context]] = []
        for span in sorted(spans, key=lambda span: (span.begin, -span.end)):
            while around and around[-1][0].end < span.end:
                around.pop()
            parent = around[-1][1] if around else self._below(span)
            around.append((span, self._send(self._tracer(group, row), span, parent)))
        self._tell()

    def close(self) -> None:
        """Send what is left, for a few seconds at most."""
        closing = Thread(target=self._processor.shutdown, daemon=True)
        closing.start()
        closing.join(CLOSE_SECONDS)
        if closing.is_alive():
            self._exporter.failed += 1
        self._tell()

    def _send(self, tracer: Tracer, span: Span, parent: Context) -> Context:
        if span.name == ROOT and span.step is not None:
            self._ids.root, parent = self._root(span.step, is_sent=True), Context()
        sent = tracer.start_span(span.name, parent, attributes=dict(_told(span)), start_time=_nano(span.begin))
        sent.end(_nano(span.end))
        return set_span_in_context(sent, Context())

    def _root(self, step: int, is_sent: bool) -> Root:
        known = self._roots.get(step)
        if known is None or (is_sent and known.is_sent):  # a step that is done again is another
            known = self._roots[step] = Root()
        known.is_sent |= is_sent
        for old in list(self._roots)[:-KEPT_STEPS]:
            del self._roots[old]
        return known

    def _below(self, span: Span) -> Context:
        """Where a span stands that no other of its row is around: below its step, if it has one."""
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

    def _tell(self) -> None:
        """One event tells of failures: those that follow are of the same kind."""
        if self._exporter.failed and not self._told:
            self._told = True
            self._report("opentelemetry_failed", endpoint=without_secrets(self._endpoint))


def _told(span: Span) -> Iterator[tuple[str, Any]]:
    if span.step is not None:
        yield "rlhf.step", span.step
    for name, value in span.details.items():
        yield f"rlhf.{name}", value if isinstance(value, (bool, int, float, str)) else str(value)


def _nano(seconds: float) -> int:
    return round(seconds * 1e9)
