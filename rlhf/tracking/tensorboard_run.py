"""Writes TensorBoard event files, shown by ``tensorboard --logdir runs``."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from rlhf.config.schema import Recipe
from rlhf.secrets import without_secrets
from rlhf.storage.jsonl import json_safe
from rlhf.tracking.histogram import Histograms
from rlhf.tracking.run_folder import RunFolder
from rlhf.tracking.sink import Sink
from rlhf.unicode import encodable

FOLDER = "tensorboard"
"""Subfolder of the stage's folder."""
FLUSH_SECONDS = 10


class TensorBoardRun(Sink):
    """One stage as a TensorBoard run: the same names, histograms, and samples as text."""

    name = "tensorboard"

    def __init__(self, run: RunFolder, recipe: Recipe, next_step: int) -> None:
        """Prepare the run; ``start`` opens its event file.

        Args:
            next_step: first step to be logged; earlier events of this and later steps are hidden.
        """
        self._folder, self._recipe, self._next_step, self._last = run.path / FOLDER, recipe, next_step, next_step

    def start(self) -> None:
        """Open the event file and write the configuration."""
        from torch.utils.tensorboard import SummaryWriter

        purge = self._next_step if self._folder.exists() else None
        self._writer: Any = SummaryWriter(str(self._folder), purge_step=purge, flush_secs=FLUSH_SECONDS)
        self._text("config", without_secrets(asdict(self._recipe)), self._next_step)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Write the metrics of one step."""
        self._last = step
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, step)

    def histograms(self, step: int, histograms: Histograms) -> None:
        """Write the histograms of one step."""
        for name, h in histograms.items():
            self._writer.add_histogram_raw(
                name,
                min=h.low,
                max=h.high,
                num=sum(h.counts),
                sum=h.total,
                sum_squares=h.squares,
                bucket_limits=h.edges[1:],
                bucket_counts=list(h.counts),
                global_step=step,
            )

    def table(self, name: str, step: int, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """Write a table as text, one block of JSON per row."""
        named = [dict(zip(columns, row, strict=True)) for row in rows]
        self._writer.add_text(name, "\n\n".join(_code(row) for row in named), step)

    def finish(self, summary: Mapping[str, Any], exit_code: int) -> None:
        """Write the summary and close the event file."""
        self._text("summary", {**summary, "exit_code": exit_code}, self._last)
        self._writer.close()

    def _text(self, name: str, values: Mapping[str, Any], step: int) -> None:
        self._writer.add_text(name, _code(values), step)


def _code(values: Mapping[str, Any]) -> str:
    """Format values as a Markdown code block, in which text written by models is not interpreted."""
    text = encodable(json.dumps(json_safe(values), indent=1, ensure_ascii=False))
    return "\n".join("    " + line for line in text.splitlines())
