"""Records a stage in its folder, and forwards metrics, samples and events to W&B and other sinks."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from rlhf.config.schema import Recipe
from rlhf.errors import UserError
from rlhf.secrets import without_secrets
from rlhf.storage.jsonl import append_line, json_safe
from rlhf.tracking.histogram import Histograms
from rlhf.tracking.outcome import DONE, reason
from rlhf.tracking.run_folder import RunFolder
from rlhf.tracking.samples import SampleRow
from rlhf.tracking.sinks import Sinks
from rlhf.tracking.spans import Span, Spans
from rlhf.tracking.trace import CONTROLLER, TraceFile

if TYPE_CHECKING:
    from rlhf.tracking.telemetry import Telemetry


class Tracker:
    """Records a stage. As a context manager it ends the W&B run as failed when the block raises before ``close``."""

    def __init__(self, run: RunFolder, recipe: Recipe) -> None:
        """Raises UserError if W&B is online without a key, or OpenTelemetry is configured and not installed."""
        self._run = run
        self.timeline = Spans()
        """Spans of the calling process, the controller."""
        self._trace: TraceFile | None = TraceFile(run.trace)
        self._telemetry = _telemetry(run, recipe, self.event)
        self._sinks: Sinks | None = Sinks(run, recipe, self.event)

    @property
    def wandb_id(self) -> str:
        """Id of the W&B run; empty without W&B."""
        return self._sinks.wandb_id if self._sinks is not None else ""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self.close({}, *reason(error))

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Record the metrics of one step. A metric that is not finite is written as null and reported as an event."""
        odd = {name: str(value) for name, value in metrics.items() if not math.isfinite(value)}
        if odd:
            self.event("metric_not_finite", step=step, metrics=odd)
        row = json_safe(metrics)
        append_line(self._run.metrics, {"step": step, **row})
        if self._sinks is not None:
            self._sinks.log(step, row)

    def samples(self, step: int, rows: Sequence[SampleRow]) -> None:
        """Record responses of one step."""
        shown = [{"step": step, **asdict(row)} for row in rows]
        for row in shown:
            append_line(self._run.samples, row)
        if self._sinks is not None:
            self._sinks.samples(step, shown)

    def histograms(self, step: int, histograms: Histograms) -> None:
        """Show the histograms of one step."""
        if self._sinks is not None:
            self._sinks.histograms(step, histograms)

    def checkpoint(self, step: int, size: int, folder: Path) -> None:
        """Record that a checkpoint of ``size`` bytes is committed."""
        self.event("checkpoint", step=step, bytes=size, path=str(folder))
        if self._sinks is not None:
            self._sinks.checkpoint(step, folder)

    def event(self, kind: str, **details: Any) -> None:
        """Record an event: a restart, a retry, or a number that is not finite, for example."""
        now = datetime.now(UTC)
        try:
            append_line(self._run.events, {"time": now.isoformat(timespec="milliseconds"), "kind": kind, **details})
        except OSError as error:  # a full disk, for example: print the event, and do not hide its cause by an error
            print(f"an event that could not be recorded ({error}): {kind} {details}", flush=True)
        member, shown = str(details.get("member") or CONTROLLER), without_secrets(details)
        self._to_trace(lambda trace: trace.instant(kind, now.timestamp(), member, shown))

    def spans(self, group: str, row: str, spans: Sequence[Span]) -> None:
        """Record spans with times of ``time.time`` in a row of the timeline; rows of one group are shown together."""
        self._to_trace(lambda trace: trace.add(group, row, spans))
        if self._telemetry is not None:
            self._telemetry.add(group, row, spans)

    def _to_trace(self, write: Callable[[TraceFile], None]) -> None:
        """Write to the timeline; if that fails, the run continues without one."""
        if self._trace is None:
            return
        try:
            write(self._trace)
        except OSError as error:
            self._trace = None
            self.event("trace_failed", error=str(error))

    def close(self, summary: Mapping[str, Any], exit_code: int = 0, exit_reason: str = DONE) -> None:
        """End the sinks, with ``summary`` and a table of samples, and the timeline. A second call does nothing."""
        if self._sinks is not None:
            self._sinks.finish(summary, exit_code, exit_reason)
            self._sinks = None
        if self._telemetry is not None:
            self._telemetry.close()
            self._telemetry = None
        self._to_trace(TraceFile.close)  # after all that may be an event


def _telemetry(run: RunFolder, recipe: Recipe, report: Callable[..., None]) -> Telemetry | None:
    """Create the exporter of the timeline, if configured."""
    if recipe.tracking.opentelemetry is None:
        return None
    try:
        from rlhf.tracking.telemetry import Telemetry
    except ImportError as error:
        raise UserError(
            "tracking.opentelemetry is set, and OpenTelemetry is not installed",
            str(error),
            "pip install opentelemetry-sdk opentelemetry-exporter-otlp-proto-http, or leave tracking.opentelemetry out",
        ) from error
    about = {"rlhf.run": recipe.name, "rlhf.stage": run.stage}
    return Telemetry(recipe.tracking.opentelemetry, about, report)
