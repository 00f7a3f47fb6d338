"""The page of a comparison, ``docs/comparison.md``, and its figure. Sentences about results follow from the run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jinja2 import Environment, StrictUndefined
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from examples.travel.compare.arms import ARMS, TEMPERATURE
from examples.travel.compare.findings import (
    describe_agreements,
    describe_contradiction,
    describe_first,
    find_contradiction,
)
from rlhf.arms.compare import Compared
from rlhf.arms.report import ComparisonReport
from rlhf.evaluation.bootstrap import Estimate
from rlhf.evaluation.intervals import describe_interval
from rlhf.evaluation.metric_table import MetricScores, summarise
from rlhf.tracking.plots import BLUE, GREEN, ORANGE, RED

TEXT = Path(__file__).with_name("page.md.jinja")
FAMILIES: Mapping[str, Sequence[str]] = {
    "text": ("rougeL", "chrf", "length"),
    "retrieval": ("faithfulness", "fact"),
    "judge": ("judge_win_rate", "judge_score"),
    "guideline": ("quality",),
}
"""Columns of the table by family, beside people's strengths."""
OF_RETRIEVER = ("context_precision", "context_recall")
"""Metrics of the passages, which are the same for all arms."""
DRAWN = {"rougeL": BLUE, "fact": GREEN, "judge_win_rate": RED}

Number = tuple[float | None, float | None, float | None]
"""A value and the ends of its interval."""


@dataclass(frozen=True, kw_only=True)
class Circumstances:
    """How a comparison came about."""

    seeds: tuple[int, ...]
    seed_of_item: tuple[int, ...]
    label_of_item: tuple[str, ...]
    """``known`` or ``new``: whether the place is in the training data."""
    raters: int
    judge: str
    is_judge_simulated: bool
    minutes: tuple[float, ...]
    """Of training and answering, by seed."""


def write_page(compared: Compared, run: Circumstances, out: Path) -> None:
    """Write the page, and its figure into ``images`` beside it."""
    figure = out.parent / "images" / f"{out.stem}.png"
    figure.parent.mkdir(parents=True, exist_ok=True)
    draw(compared.report, figure)
    report = compared.report
    environment = Environment(undefined=StrictUndefined, keep_trailing_newline=True, autoescape=False)
    text = environment.from_string(TEXT.read_text(encoding="utf-8")).render(
        report=report,
        run=run,
        arms=ARMS,
        temperature=TEMPERATURE,
        figure=figure.relative_to(out.parent),
        results="\n".join(_results(report)),
        retriever=list(_retriever(report)),
        parts="\n".join(_parts(compared, run)),
        agreement="\n".join(_agreement(report)),
        agreements=list(describe_agreements(report.agreement)),
        first=list(describe_first(report)),
        contradictions=list(_contradictions(report)),
    )
    out.write_text(text, encoding="utf-8")


def _results(report: ComparisonReport) -> Iterator[str]:
    """One table over all families, with intervals."""
    people = {each.arm: (each.strength, each.low, each.high) for each in report.ranking_by_people}
    columns = [(family, metric) for family, metrics in FAMILIES.items() for metric in metrics]
    yield f"| arm | people: strength | {' | '.join(f'{family}: `{metric}`' for family, metric in columns)} |"
    yield "|---|---|" + "---|" * len(columns)
    for arm in report.arms:
        cells = [_cell(report.result(metric, arm).mean) for _, metric in columns]
        yield f"| `{arm}` | {_interval(people[arm])} | {' | '.join(cells)} |"


def _retriever(report: ComparisonReport) -> Iterator[str]:
    found = [f"`{metric}` {_cell(report.result(metric, report.base).mean)}" for metric in OF_RETRIEVER]
    yield f"All arms with passages have the same ones: {', '.join(found)}."


def _parts(compared: Compared, run: Circumstances) -> Iterator[str]:
    """The right fact by known and new places, and the quality by seed."""
    kinds, seeds = np.array(run.label_of_item), np.array(run.seed_of_item)
    columns = {f"`fact`, {kind} places": _means(compared, "fact", kinds == kind) for kind in ("known", "new")}
    columns |= {f"`quality`, seed {seed}": _means(compared, "quality", seeds == seed) for seed in run.seeds}
    yield f"| arm | {' | '.join(columns)} |"
    yield "|---|" + "---|" * len(columns)
    for i, arm in enumerate(compared.arms.names):
        yield f"| `{arm}` | {' | '.join(_cell(column[i]) for column in columns.values())} |"


def _means(compared: Compared, metric: str, rows: np.ndarray) -> list[Estimate]:
    """A metric's means over a part of the items, by arm; ``rows`` (I,) says which."""
    arms = compared.arms
    scores = next(each for each in compared.measured.scores if each.name == metric)
    part = MetricScores(name=metric, values=scores.values[rows])
    return [each.mean for each in summarise(part, arms.names, arms.base, arms.clusters[rows], seed=0)]


def _agreement(report: ComparisonReport) -> Iterator[str]:
    yield from ("| metric | agrees with people | 95% interval | verdict | may gate |", "|---|---|---|---|---|")
    for each in sorted(report.agreement, key=lambda each: -(each.accuracy or 0.0)):
        share = "" if each.accuracy is None else f"{each.accuracy:.1%} of {each.preferences:,}"
        ends = "" if each.accuracy is None else f"{each.low:.1%} to {each.high:.1%}"
        yield f"| `{each.metric}` | {share} | {ends} | {each.verdict.value} | {'no' if each.why_not else 'yes'} |"


def _contradictions(report: ComparisonReport) -> Iterator[str]:
    for each in report.agreement:
        found = None if each.metric in OF_RETRIEVER else find_contradiction(report, each.metric)
        if found is not None:
            yield " ".join(describe_contradiction(report, found))


def _cell(found: Estimate) -> str:
    return _interval((found.value, found.low, found.high))


def _interval(number: Number) -> str:
    value, low, high = number
    return "" if value is None else describe_interval(value, low, high, digits=3)


def draw(report: ComparisonReport, out: Path) -> None:
    """Plot people's strengths and a metric of each family by arm, with 95% intervals, to a PNG."""
    figure = Figure(figsize=(11, 3.2), dpi=110, layout=ConstrainedLayoutEngine())
    people, *others = figure.subplots(1, 1 + len(DRAWN), sharey=True)
    strengths: dict[str, Number] = {each.arm: (each.strength, each.low, each.high) for each in report.ranking_by_people}
    _draw_panel(people, "people: strength above the base", strengths, ORANGE)
    for axes, (metric, colour) in zip(others, DRAWN.items()):
        means = {arm: report.result(metric, arm).mean for arm in report.arms}
        values: dict[str, Number] = {arm: (mean.value, mean.low, mean.high) for arm, mean in means.items()}
        _draw_panel(axes, metric, values, colour)
    people.invert_yaxis()
    figure.savefig(out, format="png")


def _draw_panel(axes: Axes, title: str, values: Mapping[str, Number], colour: str) -> None:
    for row, (value, low, high) in enumerate(values.values()):
        if value is not None:
            reach = [[value - (value if low is None else low)], [(value if high is None else high) - value]]
            axes.errorbar([value], [row], xerr=reach, fmt="o", capsize=3, color=colour)
    axes.set_title(title, fontsize=10)
    axes.set_yticks(range(len(values)), list(values))
    axes.grid(alpha=0.3)
