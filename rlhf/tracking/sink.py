"""Where a run's numbers are shown besides its own files. Those are the record: what a sink loses is lost to nobody."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rlhf.tracking.alerts import Alert
from rlhf.tracking.histogram import Histograms


class Sink:
    """A guest of a stage. What it cannot do is an event, ``<name>_failed``, and the stage goes on without it."""

    name = "sink"

    def __init__(self, report: Callable[..., None]) -> None:
        """Args: report writes an event, ``report(kind, **details)``."""
        self._report = report
        self.works = True
        """Whether it has not failed yet; once it has, it is not asked again."""

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Show the numbers of one step."""
        self._attempt("log", lambda: self._log(step, metrics))

    def histograms(self, step: int, histograms: Histograms) -> None:
        """Show the shape of what a step was made of."""
        self._attempt("log histograms", lambda: self._histograms(step, histograms))

    def table(self, name: str, step: int, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """Show samples, under a name."""
        self._attempt("log samples", lambda: self._table(name, step, columns, rows))

    def alert(self, alert: Alert) -> None:
        """Warn people."""
        self._attempt("alert", lambda: self._alert(alert))

    def artifact(self, kind: str, folder: Path, details: Mapping[str, Any]) -> None:
        """Take a folder: a ``checkpoint``, or the finished ``model``."""
        self._attempt(f"take the {kind}", lambda: self._artifact(kind, folder, details))

    def finish(self, summary: Mapping[str, Any], exit_code: int) -> None:
        """Show how the stage ended; the last that it is asked."""
        self._attempt("finish", lambda: self._finish(summary, exit_code))
        self.works = False

    def _attempt(self, doing: str, call: Callable[[], None]) -> None:
        if not self.works:
            return
        try:
            call()
        except Exception as error:  # whatever its reason, it must not cost the run
            self.works = False
            self._report(f"{self.name}_failed", doing=doing, error=f"{type(error).__name__}: {error}")

    def _log(self, step: int, metrics: Mapping[str, float]) -> None:
        raise NotImplementedError

    def _histograms(self, step: int, histograms: Histograms) -> None:
        raise NotImplementedError

    def _table(self, name: str, step: int, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        raise NotImplementedError

    def _alert(self, alert: Alert) -> None:
        """Not every sink reaches people."""

    def _artifact(self, kind: str, folder: Path, details: Mapping[str, Any]) -> None:
        """Not every sink takes files."""

    def _finish(self, summary: Mapping[str, Any], exit_code: int) -> None:
        raise NotImplementedError
