"""One place to which a stage reports: files in its folder, which are the record, and W&B, which shows them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, Self

from rlhf.config.schema import Recipe
from rlhf.tracking.jsonl import append_line, json_safe, read_lines
from rlhf.tracking.run_folder import RunFolder
from rlhf.tracking.wandb_run import WandbRun


@dataclass(frozen=True, kw_only=True)
class SampleRow:
    """One response, to be read by people."""

    prompt: str
    response: str
    score: float
    """Reward of the whole response, after the missing-end penalty."""
    kl: float
    """Sequence KL to the reference in nats, estimated on this response."""
    finish_reason: str
    """``stop`` or ``length``."""
    weight_version: int
    """Version of the policy weights that wrote it."""


class Tracker:
    """Records a stage. As a context manager it ends the W&B run as failed when the block raises before ``close``."""

    def __init__(self, run: RunFolder, recipe: Recipe) -> None:
        """Raises UserError where W&B is to be online and has no key."""
        self._run = run
        self._wandb: WandbRun | None = WandbRun(run, recipe, self.event)

    @property
    def wandb_id(self) -> str:
        """The W&B run's name for itself; empty without W&B."""
        return self._wandb.id if self._wandb is not None else ""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self.close({}, exit_code=0 if error is None else 1)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Record the numbers of one step. One that is not finite is written as null and reported as an event."""
        odd = {name: str(value) for name, value in metrics.items() if not math.isfinite(value)}
        if odd:
            self.event("metric_not_finite", step=step, metrics=odd)
        row = json_safe(metrics)
        append_line(self._run.metrics, {"step": step, **row})
        if self._wandb is not None:
            self._wandb.log(step, {name: value for name, value in row.items() if value is not None})

    def samples(self, step: int, rows: Sequence[SampleRow]) -> None:
        """Record responses of one step."""
        for row in rows:
            append_line(self._run.samples, {"step": step, **asdict(row)})

    def event(self, kind: str, **details: Any) -> None:
        """Record something out of the ordinary: a restart, a retry, a number that is not finite."""
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        try:
            append_line(self._run.events, {"time": now, "kind": kind, **details})
        except OSError as error:  # of a full disk above all: what the event is about shall not be lost in its place
            print(f"an event that could not be recorded ({error}): {kind} {details}", flush=True)

    def close(self, summary: Mapping[str, Any], exit_code: int = 0) -> None:
        """End the W&B run, with ``summary`` and a table of all samples. A second call does nothing."""
        if self._wandb is None:
            return
        samples = read_lines(self._run.samples)
        columns = list(samples[0]) if samples else []
        self._wandb.finish(json_safe(summary), columns, [list(row.values()) for row in samples], exit_code)
        self._wandb = None
