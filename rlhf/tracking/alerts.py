"""Rules that decide from a step's metrics when to warn people about a run."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from rlhf.config.schema import AlertConfig
from rlhf.metrics import METRICS

Level = Literal["WARN", "ERROR"]

BASELINE_STEPS = 5
"""Number of first steps whose mean is the baseline of a collapse."""
SHARE_OF_LIMIT = 0.8
"""Fraction of ``canaries.max_kl`` (at which the run stops) above which a warning is sent."""
COLLAPSES = {"length": "rollout/length_mean", "entropy": "policy/entropy_avg"}
"""Metrics whose fall is a collapse, by the kind of the alert."""


@dataclass(frozen=True, kw_only=True)
class Alert:
    """One warning. Repetitions are limited per ``kind``."""

    kind: str
    title: str
    text: str
    level: Level = "WARN"


class Alerts:
    """Derives warnings from the metrics of a run's steps.

    For a resumed run, the earlier steps are observed first and their warnings discarded.

    Args:
        max_kl: KL at which the run stops, if any.
    """

    def __init__(self, config: AlertConfig, max_kl: float | None) -> None:
        self.config = config
        self.kl_limit = config.max_kl or (SHARE_OF_LIMIT * max_kl if max_kl else None)
        self._given: dict[str, int] = {}
        self._first: defaultdict[str, dict[int, float]] = defaultdict(dict)
        self._restarts = 0.0

    def observe(self, step: int, metrics: Mapping[str, float | None]) -> list[Alert]:
        """Warnings due after a step, except kinds that were given within the last ``repeat_steps`` steps."""
        found = []
        for alert in self._due(step, metrics):
            given = self._given.get(alert.kind)
            if given is None or step - given >= self.config.repeat_steps:
                found.append(alert)
                self._given[alert.kind] = step
                if alert.kind == "restarts":
                    self._restarts = metrics.get("health/restarts") or 0.0
        return found

    def _due(self, step: int, metrics: Mapping[str, float | None]) -> Iterator[Alert]:
        kl = metrics.get("objective/kl")
        if kl is not None and self.kl_limit is not None and kl > self.kl_limit:
            text = f"step {step}: objective/kl is {kl:.4g} {METRICS['objective/kl'].unit}, above {self.kl_limit:.4g}"
            yield Alert(kind="kl", title="KL is high", text=text)
        for kind, share in (("length", self.config.length_share), ("entropy", self.config.entropy_share)):
            yield from self._collapse(kind, share, step, metrics)
        restarts = (metrics.get("health/restarts") or 0.0) - self._restarts
        if self.config.restarts and restarts >= self.config.restarts:
            text = (
                f"step {step}: {restarts:.0f} restarts since the last such warning; events.jsonl has actors and causes"
            )
            yield Alert(kind="restarts", title="Actors were restarted", text=text)

    def _collapse(self, kind: str, share: float, step: int, metrics: Mapping[str, float | None]) -> Iterator[Alert]:
        """Warn if a metric is far below its mean over the first steps that have it."""
        metric = COLLAPSES[kind]
        value, first = metrics.get(metric), self._first[kind]
        if value is None:
            return
        if step in first or len(first) < BASELINE_STEPS:
            first[step] = value
            return
        baseline = sum(first.values()) / len(first)
        if value < share * baseline:
            unit = METRICS[metric].unit
            text = f"step {step}: {metric} is {value:.4g} {unit}; it was {baseline:.4g} in the first steps"
            yield Alert(kind=kind, title=f"{kind.capitalize()} has collapsed", text=text)
