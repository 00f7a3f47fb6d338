"""Base class of the services that show a run; ``Tracker`` calls them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from rlhf.tracking.alerts import Alert
from rlhf.tracking.histogram import Histograms


class Sink:
    """A service that shows a stage. Methods may raise: the tracker does not use a sink again after a failure."""

    name: ClassVar[str]
    works = True
    """Whether it has not failed yet."""

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Show the metrics of one step."""
        raise NotImplementedError

    def histograms(self, step: int, histograms: Histograms) -> None:
        """Show the histograms of one step."""
        raise NotImplementedError

    def table(self, name: str, step: int, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """Show samples as a table."""
        raise NotImplementedError

    def alert(self, alert: Alert) -> None:
        """Send a warning, if the service supports it."""

    def artifact(self, kind: str, folder: Path, details: Mapping[str, Any]) -> None:
        """Upload a folder, a ``checkpoint`` or the finished ``model``, if the service supports it."""

    def finish(self, summary: Mapping[str, Any], exit_code: int) -> None:
        """Show the outcome of the stage."""
        raise NotImplementedError

    def release(self) -> None:
        """Release the resources of a sink that has failed; the last call."""
