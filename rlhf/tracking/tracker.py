"""Records a stage in its folder, and shows metrics, samples and warnings in W&B and other sinks.

The folder is the record: a failure of a sink, of the timeline or of its export is an event and never ends the run.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from rlhf.config.schema import Recipe
from rlhf.errors import Stopped, UserError
from rlhf.secrets import without_secrets
from rlhf.storage.jsonl import append_line, json_safe, read_lines
from rlhf.tracking.alerts import Alert, Alerts
from rlhf.tracking.histogram import Histograms
from rlhf.tracking.lost_rows import RECORD_LOST, LostRows, told_before
from rlhf.tracking.metric_rows import read_metric_rows
from rlhf.tracking.outcome import DONE, outcome, reason
from rlhf.tracking.run_folder import RunFolder
from rlhf.tracking.samples import COLUMNS, SampleRow, Window, table
from rlhf.tracking.sink import Sink
from rlhf.tracking.spans import Span, Spans
from rlhf.tracking.trace import CONTROLLER, TraceFile
from rlhf.tracking.wandb_run import WandbRun

if TYPE_CHECKING:
    from rlhf.tracking.telemetry import Telemetry

LAST_ROWS = 300
"""Rows of the final table, which covers the whole run."""
FINAL = 2**31
"""Replaces the step in the seed of the final table."""


class Tracker:
    """Records a stage. As a context manager it ends the W&B run as failed when the block raises before ``close``."""

    def __init__(self, run: RunFolder, recipe: Recipe, show: Callable[[str], object] = print) -> None:
        """Begin to record a stage.

        Args:
            show: shows a line to the user.

        Raises:
            UserError: W&B is online without a key, or OpenTelemetry is configured and not installed.
        """
        self._run, self._recipe, self._show_line = run, recipe, show
        self._begun = {file for file in (run.metrics, run.samples, run.events) if file.exists()}
        """Files that exist unless somebody deletes them."""
        self._told = told_before(run.events)
        """Lost rows that are told, also by earlier commands."""
        self.timeline = Spans()
        """Spans of the calling process, the controller."""
        self._trace: TraceFile | None = TraceFile(run.trace)
        self._telemetry = _telemetry(run, recipe, self.event)
        history = read_metric_rows(run.metrics)
        self._window = Window(recipe.tracking.table_every, read_lines(run.samples))
        self._alerts = Alerts(recipe.tracking.alerts, recipe.canaries.max_kl)
        for row in history:  # of a resumed run, whose warnings are not repeated
            self._alerts.observe(row["step"], row)
        self._wandb = WandbRun(run, recipe, self.event)
        self._sinks: list[Sink] = [self._wandb]
        if recipe.tracking.tensorboard:
            from rlhf.tracking.tensorboard_run import TensorBoardRun

            board = TensorBoardRun(run, recipe, next_step=history[-1]["step"] + 1 if history else 0)
            self._sinks.append(board)
            self._try("start", board, board.start)

    @property
    def wandb_id(self) -> str:
        """Id of the W&B run; empty without W&B."""
        return self._wandb.id

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self.close({}, *reason(error))

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Record the metrics of one step, and send the warnings that are due.

        A metric that is not finite is written as null and reported as an event.
        """
        odd = {name: str(value) for name, value in metrics.items() if not math.isfinite(value)}
        if odd:
            self.event("metric_not_finite", step=step, metrics=odd)
        row = json_safe(metrics)
        self._append(self._run.metrics, {"step": step, **row}, step)
        finite = {name: value for name, value in row.items() if value is not None}
        self._show("log", lambda sink: sink.log(step, finite))
        for alert in self._alerts.observe(step, row):
            self.alert(step, alert)

    def alert(self, step: int, alert: Alert) -> None:
        """Record a warning, and send it."""
        self.event("alert", alert=alert.kind, level=alert.level, step=step, message=alert.text)
        self._warn(alert)

    def samples(self, step: int, rows: Sequence[SampleRow]) -> None:
        """Record responses of one step; every ``tracking.table_every`` steps they are shown as a table."""
        shown = [{"step": step, **asdict(row)} for row in rows]
        for row in shown:
            self._append(self._run.samples, row, step)
        if due := self._window.add(step, shown):
            self._show_table("samples", step, due, self._recipe.tracking.table_rows, step)

    def histograms(self, step: int, histograms: Histograms) -> None:
        """Show the histograms of one step."""
        if histograms:
            self._show("log histograms", lambda sink: sink.histograms(step, histograms))

    def checkpoint(self, step: int, size: int, folder: Path, seconds: float) -> None:
        """Record that a checkpoint of ``size`` bytes is committed, after so many seconds; upload it, if configured."""
        self.event("checkpoint", step=step, bytes=size, seconds=round(seconds, 3), path=str(folder))
        if self._recipe.tracking.artifacts == "checkpoints":
            self._show("take the checkpoint", lambda sink: sink.artifact("checkpoint", folder, {"step": step}))

    def lost(self, lost: LostRows) -> None:
        """Warn once that somebody deleted a file of the record."""
        self._begun.discard(lost.file)
        if lost in self._told:
            return
        self._told.add(lost)
        self.event(RECORD_LOST, file=str(lost.file), before_step=lost.before, message=lost.text)
        self._warn(Alert(kind=RECORD_LOST, title="A record was deleted", text=lost.text))
        self._show_line(lost.text)

    def event(self, kind: str, **details: Any) -> None:
        """Record an event: a restart, a retry, or a number that is not finite, for example."""
        now = datetime.now(UTC)
        try:
            self._append(self._run.events, {"time": now.isoformat(timespec="milliseconds"), "kind": kind, **details})
        except OSError as error:  # a full disk, for example: print the event, and do not hide its cause by an error
            print(f"an event that could not be recorded ({error}): {kind} {details}", flush=True)
        member, shown = str(details.get("member") or CONTROLLER), without_secrets(details)
        self._to_trace(lambda trace: trace.instant(kind, now.timestamp(), member, shown))

    def _append(self, file: Path, row: Mapping[str, Any], step: int | None = None) -> None:
        """Append to a file of the record, which may have been deleted since the last row."""
        if file in self._begun and not file.exists():
            self.lost(LostRows(file=file, before=step))
        append_line(file, row)
        self._begun.add(file)

    def spans(self, group: str, row: str, spans: Sequence[Span]) -> None:
        """Record spans with times of ``time.time`` in a row of the timeline; rows of one group are shown together."""
        self._to_trace(lambda trace: trace.add(group, row, spans))
        if self._telemetry is not None:
            self._telemetry.add(group, row, spans)

    def close(self, summary: Mapping[str, Any], exit_code: int = 0, exit_reason: str = DONE) -> None:
        """End the sinks, with ``summary`` and a table of samples, and the timeline. A second call does nothing."""
        if self._sinks:
            self._finish(summary, exit_code, exit_reason)
            self._sinks = []
        if self._telemetry is not None:
            self._telemetry.close()
            self._telemetry = None
        self._to_trace(TraceFile.close)  # last: everything before it may record an event

    def _finish(self, summary: Mapping[str, Any], exit_code: int, exit_reason: str) -> None:
        final = {**json_safe(summary), **self._outcome(exit_code, exit_reason)}
        if exit_code:
            title = "The run was stopped" if exit_code == Stopped.exit_code else "The run failed"
            self._warn(Alert(kind="ended", title=title, text=final["exit_reason"], level="ERROR"))
        elif self._recipe.tracking.artifacts != "none" and self._run.model.exists():
            self._show("take the model", lambda sink: sink.artifact("model", self._run.model, {}))
        self._show("finish", lambda sink: sink.finish(final, exit_code))
        for sink in self._sinks:
            if not sink.works:
                sink.release()

    def _outcome(self, exit_code: int, exit_reason: str) -> dict[str, Any]:
        """The outcome of the stage; also shows the table of samples from all steps."""
        try:
            history, samples = read_lines(self._run.metrics), read_lines(self._run.samples)
        except UserError as error:  # the stage's exit reason must still be reported
            self.event("record_unreadable", error=str(error))
            history, samples = [], []
        if history and samples:
            self._show_table("samples_of_all_steps", history[-1]["step"], samples, LAST_ROWS, FINAL)
        return outcome(history, exit_code, exit_reason)

    def _warn(self, alert: Alert) -> None:
        self._show("alert", lambda sink: sink.alert(alert))

    def _show_table(self, name: str, step: int, samples: Sequence[Mapping[str, Any]], count: int, seed: int) -> None:
        rows = table(samples, count, (self._recipe.seed, seed))
        self._show("log samples", lambda sink: sink.table(name, step, COLUMNS, rows))

    def _show(self, doing: str, call: Callable[[Sink], None]) -> None:
        for sink in self._sinks:
            self._try(doing, sink, partial(call, sink))

    def _try(self, doing: str, sink: Sink, call: Callable[[], None]) -> None:
        """Call a sink that works; its first failure is an event."""
        if not sink.works:
            return
        try:
            call()
        except Exception as error:
            sink.works = False
            self.event(f"{sink.name}_failed", doing=doing, error=f"{type(error).__name__}: {error}")

    def _to_trace(self, write: Callable[[TraceFile], None]) -> None:
        """Write to the timeline; if that fails, the run continues without one."""
        if self._trace is None:
            return
        try:
            write(self._trace)
        except OSError as error:
            self._trace = None
            self.event("trace_failed", error=str(error))


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
            "pip install opentelemetry-sdk opentelemetry-exporter-otlp-proto-http, or tracking.opentelemetry=null",
        ) from error
    about = {"rlhf.run": recipe.name, "rlhf.stage": run.stage}
    return Telemetry(recipe.tracking.opentelemetry, about, report)
