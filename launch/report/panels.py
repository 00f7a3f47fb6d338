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
from rlhf.metrics import PANELS, QUESTIONS, TIME, Panel
from rlhf.recovery.member import role_of

OTHER = "All other metrics"
INTERVAL = ("_ci_low", "_ci_high")


def charts_of(stage: StageRecord) -> dict[str, list[Chart]]:
    """The stage's charts by question; every metric is in one of them."""
    found: dict[str, list[Chart]] = {question: [] for question in (*QUESTIONS, OTHER)}
    for panel in PANELS:
        lines = {metric: name for metric, name in panel.lines.items() if metric in stage.metrics}
        if lines:
            found[panel.question].append(_chart(panel, lines, stage))
    if phases := [name for name in stage.metrics if name.startswith("time/")]:
        found[TIME].insert(0, _phases(phases, stage))
    found[OTHER] = [_single_chart(metric, stage) for metric in sorted(_remaining_metrics(stage))]
    return found


def _chart(panel: Panel, lines: Mapping[str, str], stage: StageRecord) -> Chart:
    return Chart(
        title=panel.title,
        unit=panel.unit,
        lines=[_line(metric, name, stage) for metric, name in lines.items()],
        levels=[level for metric in lines for level in _levels(metric, stage)],
        logarithmic=panel.logarithmic,
    )


def _line(metric: str, name: str, stage: StageRecord) -> Line:
    low, high = (stage.metrics.get(metric + end, ()) for end in INTERVAL)
    return Line(name=name, points=stage.metrics[metric], low=low, high=high)


def _phases(metrics: list[str], stage: StageRecord) -> Chart:
    lines = [_line(metric, metric.removeprefix("time/"), stage) for metric in metrics]
    return Chart(title="Phases", unit="seconds in each step", lines=lines)


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
    return Chart(title="Busy", unit="share of the step, mean of the role's actors", lines=lines)


def _single_chart(metric: str, stage: StageRecord) -> Chart:
    return Chart(title=metric, unit="", lines=[_line(metric, metric, stage)])


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
    dtype = _part(stage.config, "model").get("dtype")
    limit = DEFAULTS.get(dtype, {}).get("gap") if isinstance(dtype, str) else None
    known = {
        "objective/kl": ("limit", canaries.get("max_kl")),
        "rollout/logprob_gap_mean": ("limit", canaries.get("logprob_gap_limit") or limit),
        "eval/accuracy": (CEILING, stage.summary.get(CEILING)),
        "objective/scores": ("before the first update", stage.first("objective/scores")),
    }
    name, value = known.get(metric, ("", None))
    if (level := number(value)) is not None:
        yield name, level


def _part(config: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    value = config.get(key)
    return value if isinstance(value, Mapping) else {}
