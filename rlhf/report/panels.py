"""Which curves answer which question, and what they are compared with."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from rlhf.algorithms.canaries import DEFAULTS
from rlhf.evaluation.accuracy import CEILING
from rlhf.recovery.member import role_of
from rlhf.report.charts import Chart, Line
from rlhf.report.read import StageRecord, number
from rlhf.report.timeline import Timeline

LEARNING, STABLE, TIME, BROKE = "Is it learning?", "Is it stable?", "Where does the time go?", "What broke?"
OTHER = "All other metrics"
QUESTIONS = (LEARNING, STABLE, TIME, BROKE)
INTERVAL = ("_ci_low", "_ci_high")


@dataclass(frozen=True, kw_only=True)
class Panel:
    """Metrics that are drawn into one chart, under the names that the lines have there."""

    question: str
    title: str
    unit: str
    lines: Mapping[str, str]
    logarithmic: bool = False


def _panel(question: str, title: str, unit: str, logarithmic: bool = False, **lines: str) -> Panel:
    metrics = {metric: name.replace("_", " ") for name, metric in lines.items()}
    return Panel(question=question, title=title, unit=unit, lines=metrics, logarithmic=logarithmic)


PANELS = (
    _panel(LEARNING, "Loss", "nats", update="train/loss", held_out="eval/loss"),
    _panel(
        LEARNING, "Accuracy", "share of pairs ranked as people did", update="train/accuracy", held_out="eval/accuracy"
    ),
    _panel(LEARNING, "Score", "reward, mean of the batch", score="objective/scores"),
    _panel(LEARNING, "Held-out score", "by a judge that is not trained on", judge="holdout/score"),
    _panel(LEARNING, "Score less the price of KL", "what is maximised", reward="objective/rlhf_reward"),
    _panel(
        LEARNING, "Rewards of DPO", "\u03b2 log \u03c0/\u03c0_ref", chosen="rewards/chosen", rejected="rewards/rejected"
    ),
    _panel(LEARNING, "Margin of DPO", "chosen less rejected", update="rewards/margins", held_out="eval/rewards_margin"),
    _panel(STABLE, "KL to the reference", "nats per response", kl="objective/kl"),
    _panel(STABLE, "Entropy", "nats per token", entropy="policy/entropy_avg"),
    _panel(STABLE, "Length of responses", "tokens, mean", length="rollout/length_mean"),
    _panel(STABLE, "Responses without an end", "share", cut_off="rollout/truncated_fraction"),
    _panel(
        STABLE, "Trainer against engine", "mean |\u0394 log p|, nats per token", True, gap="rollout/logprob_gap_mean"
    ),
    _panel(STABLE, "Size of the update", "\u00bd (log \u03c1)\u00b2", approxkl="policy/approxkl_avg"),
    _panel(STABLE, "Clipped tokens", "share", policy="policy/clipfrac_avg", critic="val/clipfrac_avg"),
    _panel(STABLE, "Critic", "explained variance", critic="critic/explained_variance"),
    _panel(STABLE, "Gradient's norm", "before clipping", policy="policy/grad_norm", update="train/grad_norm"),
    _panel(STABLE, "Staleness", "versions", versions="rollout/staleness_mean"),
    _panel(TIME, "Goodput", "share of the time that became steps which are kept", goodput="perf/goodput"),
    _panel(
        TIME, "Tokens", "per second", rollout="perf/rollout_tokens_per_second", training="perf/train_tokens_per_second"
    ),
    _panel(BROKE, "Restarts", "actors, so far", restarts="health/restarts"),
    _panel(BROKE, "Given out again", "samples, so far", again="health/redispatched", set_aside="health/set_aside"),
    _panel(BROKE, "Seconds lost", "so far", lost="health/seconds_lost"),
)


def charts_of(stage: StageRecord) -> dict[str, list[Chart]]:
    """The stage's charts by question, every one of its metrics in one of them."""
    found: dict[str, list[Chart]] = {question: [] for question in (*QUESTIONS, OTHER)}
    for panel in PANELS:
        lines = {metric: name for metric, name in panel.lines.items() if metric in stage.metrics}
        if lines:
            found[panel.question].append(_chart(panel, lines, stage))
    if phases := [name for name in stage.metrics if name.startswith("time/")]:
        found[TIME].insert(0, _phases(phases, stage))
    found[OTHER] = [_alone(metric, stage) for metric in sorted(_left(stage))]
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
    """By step, the share of it in which the actors of each role were busy, on the mean."""
    shares: defaultdict[str, defaultdict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
    for actor in timeline.actors:
        for step, share in timeline.busy(actor).items():
            shares[role_of(actor)][step].append(share)
    lines = [
        Line(name=role, points=tuple((float(step), sum(some) / len(some)) for step, some in steps.items()))
        for role, steps in shares.items()
    ]
    return Chart(title="Busy", unit="share of the step, mean of the role's actors", lines=lines)


def _alone(metric: str, stage: StageRecord) -> Chart:
    return Chart(title=metric, unit="", lines=[_line(metric, metric, stage)])


def _left(stage: StageRecord) -> Iterator[str]:
    drawn = {metric for panel in PANELS for metric in panel.lines}
    for metric in stage.metrics:
        ends = [end for end in INTERVAL if metric.endswith(end)]
        interval = any(metric.removesuffix(end) in stage.metrics for end in ends)
        if metric not in drawn and not metric.startswith("time/") and not interval:
            yield metric


def _levels(metric: str, stage: StageRecord) -> Iterator[tuple[str, float]]:
    """Limits of the recipe and what the stage's summary compares with; what is not known is not drawn."""
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
