"""All sinks of a stage, and what is shown in them and when."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rlhf.config.schema import Recipe
from rlhf.errors import Stopped
from rlhf.storage.jsonl import json_safe, read_lines
from rlhf.tracking.alerts import Alert, Alerts
from rlhf.tracking.histogram import Histograms
from rlhf.tracking.outcome import outcome
from rlhf.tracking.run_folder import RunFolder
from rlhf.tracking.samples import COLUMNS, Window, table
from rlhf.tracking.sink import Sink
from rlhf.tracking.wandb_run import WandbRun

LAST_ROWS = 300
"""Rows of the final table, which covers the whole run."""
FINAL = 2**31
"""Replaces the step in the seed of the final table."""


class Sinks:
    """W&B and TensorBoard, as configured in the recipe."""

    def __init__(self, run: RunFolder, recipe: Recipe, report: Callable[..., None]) -> None:
        """Args: report writes an event, ``report(kind, **details)``.

        Raises:
            UserError: W&B is configured to be online and has no key.
        """
        self._run, self._recipe, self._report = run, recipe, report
        history = read_lines(run.metrics)
        self._window = Window(recipe.tracking.table_every, read_lines(run.samples))
        self._alerts = Alerts(recipe.tracking.alerts, recipe.canaries.max_kl)
        for row in history:  # of a resumed run, whose warnings are not repeated
            self._alerts.observe(row["step"], row)
        self._wandb = WandbRun(run, recipe, report)
        self._all: list[Sink] = [self._wandb]
        if recipe.tracking.tensorboard:
            from rlhf.tracking.tensorboard_run import TensorBoardRun

            next_step = history[-1]["step"] + 1 if history else 0
            self._all.append(TensorBoardRun(run, recipe, report, next_step))

    @property
    def wandb_id(self) -> str:
        """Id of the W&B run; empty without W&B."""
        return self._wandb.id

    def log(self, step: int, metrics: Mapping[str, float | None]) -> None:
        """Show the metrics of one step (None: not finite), and send the warnings that are due."""
        shown = {name: value for name, value in metrics.items() if value is not None}
        for sink in self._all:
            sink.log(step, shown)
        for alert in self._alerts.observe(step, metrics):
            self._report("alert", alert=alert.kind, level=alert.level, step=step, message=alert.text)
            self._warn(alert)

    def samples(self, step: int, rows: Sequence[Mapping[str, Any]]) -> None:
        """Add the samples of one step; every ``tracking.table_every`` steps they are shown as a table."""
        due = self._window.add(step, rows)
        if due:
            self._show("samples", step, table(due, self._recipe.tracking.table_rows, (self._recipe.seed, step)))

    def histograms(self, step: int, histograms: Histograms) -> None:
        """Show the histograms of one step."""
        for sink in self._all if histograms else ():
            sink.histograms(step, histograms)

    def checkpoint(self, step: int, folder: Path) -> None:
        """Upload a committed checkpoint, if configured."""
        if self._recipe.tracking.artifacts == "checkpoints":
            for sink in self._all:
                sink.artifact("checkpoint", folder, {"step": step})

    def finish(self, summary: Mapping[str, Any], exit_code: int, exit_reason: str) -> None:
        """Show the outcome of the stage and a table of samples from all steps; upload its model, if configured."""
        final = {**json_safe(summary), **self._outcome(exit_code, exit_reason)}
        if exit_code:
            title = "The run was stopped" if exit_code == Stopped.exit_code else "The run failed"
            self._warn(Alert(kind="ended", title=title, text=final["exit_reason"], level="ERROR"))
        if self._recipe.tracking.artifacts != "none" and not exit_code and self._run.model.exists():
            for sink in self._all:
                sink.artifact("model", self._run.model, {})
        for sink in self._all:
            sink.finish(final, exit_code)

    def _outcome(self, exit_code: int, exit_reason: str) -> dict[str, Any]:
        try:
            history, samples = read_lines(self._run.metrics), read_lines(self._run.samples)
        except (OSError, ValueError) as error:  # the stage's exit reason must still be reported
            self._report("record_unreadable", error=str(error))
            history, samples = [], []
        if history and samples:
            rows = table(samples, LAST_ROWS, (self._recipe.seed, FINAL))
            self._show("samples_of_all_steps", history[-1]["step"], rows)
        return outcome(history, exit_code, exit_reason)

    def _show(self, name: str, step: int, rows: Sequence[Sequence[Any]]) -> None:
        for sink in self._all:
            sink.table(name, step, COLUMNS, rows)

    def _warn(self, alert: Alert) -> None:
        for sink in self._all:
            sink.alert(alert)
