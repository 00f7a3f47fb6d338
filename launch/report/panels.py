"""Groups curves by the question that they answer, and selects their reference values."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import Any

from launch.report.charts import Chart, Line
from launch.report.read import StageRecord, number
from launch.report.timeline import Timeline
from rlhf.algorithms.canaries import DEFAULTS
from rlhf.evaluation.accuracy import CEILING
from rlhf.metrics import INTERVAL, METRICS, PANELS, QUESTIONS, Panel
from rlhf.recovery.member import role_of

OTHER = "All other metrics"
PHASES = "Phases"
"""Title of the panel that shows all phases of a stage, and not only those of a step of PPO."""


def charts_of(stage: StageRecord) -> dict[str, list[Chart]]:
    """The stage's charts by question; every metric is in one of them."""
    found: dict[str, list[Chart]] = {question: [] for question in (*QUESTIONS, OTHER)}
    for panel in PANELS:
        phases = {name: name.removeprefix("time/") for name in stage.metrics if name.startswith("time/")}
        lines = {**panel.lines, **(phases if panel.title == PHASES else {})}
        if recorded := {metric: name for metric, name in lines.items() if metric in stage.metrics}:
            found[panel.question].append(_chart(panel, recorded, stage))
    found[OTHER] = [_single_chart(metric, stage) for metric in sorted(_remaining_metrics(stage))]
    return found


def _chart(panel: Panel, lines: Mapping[str, str], stage: StageRecord) -> Chart:
    return Chart(
        title=panel.title,
        unit=f"{panel.unit}; {panel.better} is better" if panel.better else panel.unit,
        lines=[_line(metric, name, stage) for metric, name in lines.items()],
        levels=[level for metric in lines for level in _levels(metric, stage)],
        logarithmic=panel.logarithmic,
    )


def _line(metric: str, name: str, stage: StageRecord) -> Line:
    low, high = (stage.metrics.get(metric + end, ()) for end in INTERVAL)
    return Line(name=name, points=stage.metrics[metric], low=low, high=high)


def utilisation_chart(timeline: Timeline) -> Chart:
    """Mean busy share of each role's actors, by step."""
    shares: defaultdict[str, defaultdict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
    for actor in timeline.actors:
        for step, share in timeline.busy(actor).items():
            shares[role_of(actor)][step].append(share)
    lines = [
        Line(name=role, points=tuple((float(step), sum(some) / len(some)) for step, some in steps.items()))
        for role, steps in shares.items()
    ]
    return Chart(title="Busy", unit="fraction of the step, mean of the role's actors", lines=lines)


def _single_chart(metric: str, stage: StageRecord) -> Chart:
    known = METRICS.get(metric)
    return Chart(title=metric, unit=known.unit if known else "", lines=[_line(metric, metric, stage)])


def _remaining_metrics(stage: StageRecord) -> Iterator[str]:
    drawn = {metric for panel in PANELS for metric in panel.lines}
    for metric in stage.metrics:
        ends = [end for end in INTERVAL if metric.endswith(end)]
        interval = any(metric.removesuffix(end) in stage.metrics for end in ends)
        if metric not in drawn and not metric.startswith("time/") and not interval:
            yield metric


def _levels(metric: str, stage: StageRecord) -> Iterator[tuple[str, float]]:
    """Reference values: limits of the recipe, and values of the stage's summary; unknown ones are omitted."""
    canaries = _part(stage.config, "canaries")
    dtype, gap = _part(stage.config, "model").get("dtype"), canaries.get("logprob_gap_limit")
    if gap is None and isinstance(dtype, str):
        gap = DEFAULTS.get(dtype, {}).get("gap")
    if _part(stage.config, "ppo").get("staleness"):  # then the canary does not check it
        gap = None
    known = {
        "objective/kl": ("limit", canaries.get("max_kl")),
        "rollout/logprob_gap_mean": ("limit", gap),
        "eval/accuracy": (CEILING, stage.summary.get(CEILING)),
        "objective/scores": ("before the first update", stage.first("objective/scores")),
    }
    name, value = known.get(metric, ("", None))
    if (level := number(value)) is not None:
        yield name, level


def _part(config: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    value = config.get(key)
    return value if isinstance(value, Mapping) else {}
