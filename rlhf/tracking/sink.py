"""Base class of the services that show a run. The run's files are the record, so that a sink may fail."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rlhf.tracking.alerts import Alert
from rlhf.tracking.histogram import Histograms


class Sink:
    """A service that shows a stage. Its first failure is an event, ``<name>_failed``, after which it is not used."""

    name = "sink"

    def __init__(self, report: Callable[..., None]) -> None:
        """Args: report writes an event, ``report(kind, **details)``."""
        self._report = report
        self.works = True
        """Whether it has not failed yet; a failed sink is not used again."""

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Show the metrics of one step."""
        self._attempt("log", lambda: self._log(step, metrics))

    def histograms(self, step: int, histograms: Histograms) -> None:
        """Show the histograms of one step."""
        self._attempt("log histograms", lambda: self._histograms(step, histograms))

    def table(self, name: str, step: int, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """Show samples as a table."""
        self._attempt("log samples", lambda: self._table(name, step, columns, rows))

    def alert(self, alert: Alert) -> None:
        """Send a warning."""
        self._attempt("alert", lambda: self._alert(alert))

    def artifact(self, kind: str, folder: Path, details: Mapping[str, Any]) -> None:
        """Upload a folder: a ``checkpoint``, or the finished ``model``."""
        self._attempt(f"take the {kind}", lambda: self._artifact(kind, folder, details))

    def finish(self, summary: Mapping[str, Any], exit_code: int) -> None:
        """Show the outcome of the stage; the last call."""
        self._attempt("finish", lambda: self._finish(summary, exit_code))
        self.works = False

    def _attempt(self, doing: str, call: Callable[[], None]) -> None:
        if not self.works:
            return
        try:
            call()
        except Exception as error:  # no failure of a sink may end the run
            self.works = False
            self._report(f"{self.name}_failed", doing=doing, error=f"{type(error).__name__}: {error}")

    def _log(self, step: int, metrics: Mapping[str, float]) -> None:
        raise NotImplementedError

    def _histograms(self, step: int, histograms: Histograms) -> None:
        raise NotImplementedError

    def _table(self, name: str, step: int, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        raise NotImplementedError

    def _alert(self, alert: Alert) -> None:
        """Do nothing: a sink need not support alerts."""

    def _artifact(self, kind: str, folder: Path, details: Mapping[str, Any]) -> None:
        """Do nothing: a sink need not support files."""

    def _finish(self, summary: Mapping[str, Any], exit_code: int) -> None:
        raise NotImplementedError
