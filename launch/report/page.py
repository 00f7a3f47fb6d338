"""Builds the whole page: one file without network requests, which runs only its own script."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.resources import files
from pathlib import Path

from markupsafe import Markup

from launch.report import tables
from launch.report.charts import Chart, draw, readings
from launch.report.panels import OTHER, charts_of, utilisation_chart
from launch.report.read import RunRecord, StageRecord, number, read_run
from launch.report.render import format_value, render
from launch.report.strip import draw_strip
from launch.report.timeline import Timeline
from rlhf.errors import UserError
from rlhf.metrics import METRICS, QUESTIONS, TIME
from rlhf.storage.durable import write_atomically

TITLES = {"sft": "Supervised fine-tuning", "reward": "Reward model", "dpo": "DPO", "ppo": "PPO"}
NAME = "report.html"

HEADLINE = {
    "sft": ("eval/loss",),
    "reward": ("eval/accuracy",),
    "dpo": ("eval/accuracy",),
    "ppo": ("objective/scores", "objective/kl", "perf/goodput", "health/restarts"),
}
"""Metrics whose last values are at the top, by stage."""


def write_report(root: Path, out: Path | None = None) -> Path:
    """Write the page of ``runs/<name>`` to ``report.html`` in that folder, or to ``out``; returns its path.

    Raises:
        UserError: the folder is no run's, or the page cannot be written.
    """
    return write_page(page(read_run(root), datetime.now(UTC)), out or root / NAME)


def write_page(html: str, target: Path) -> Path:
    """Write a page; returns its path.

    Raises:
        UserError: it cannot be written.
    """
    try:
        write_atomically(target, html)
    except OSError as error:
        raise UserError(f"cannot write {target}", str(error), "name another file with --out") from error
    return target


@dataclass(frozen=True, kw_only=True)
class Subsection:
    """A part of a section: charts side by side, and tables and figures below them."""

    heading: str = ""
    charts: Sequence[Markup] = ()
    parts: Sequence[Markup] = ()
    is_folded: bool = False


@dataclass(frozen=True, kw_only=True)
class Section:
    """A part of the page with a title, to which its table of contents links."""

    title: str
    subsections: Sequence[Subsection]

    @property
    def anchor(self) -> str:
        """An id for links, of letters and dashes."""
        return "".join(letter if letter.isalnum() else "-" for letter in self.title.lower()).strip("-")


def page(run: RunRecord, made: datetime) -> str:
    """The HTML of a run; ``made`` is the time that the page gives as its own."""
    charts = Charts()
    sections = [_stage(stage, charts) for stage in run.stages]
    sections += [section for section in _tables(run) if section.subsections]
    return render_page(run, made, list(_headline(run)), sections, charts)


def render_page(
    run: RunRecord, made: datetime, headline: Sequence[tuple[str, str]], sections: Sequence[Section], charts: Charts
) -> str:
    """The whole file.

    Args:
        headline: names and values at the top.
        charts: those that drew the sections' charts.
    """
    script, style = (files("launch.report").joinpath(f"report.{kind}").read_text("utf-8") for kind in ("js", "css"))
    return render(
        "page",
        run=run,
        titles=TITLES,
        headline=headline,
        made=made.isoformat(sep=" ", timespec="minutes"),
        sections=sections,
        readings=charts.readings,
        script=script,
        style=style,
    )


class Charts:
    """Draws the page's charts, numbered in order, and collects the readings for its script."""

    def __init__(self) -> None:
        self.readings: list[list[list[float | str]]] = []

    def draw(self, charts: Sequence[Chart]) -> list[Markup]:
        """Draw further charts."""
        drawn = [draw(chart, len(self.readings) + k) for k, chart in enumerate(charts)]
        self.readings += map(readings, charts)
        return drawn


def _headline(run: RunRecord) -> Iterator[tuple[str, str]]:
    if (rate := number(run.comparison.get("win rate"))) is not None:
        yield "win rate, after against before", f"{rate:.1%}"
    for stage in run.stages:
        for metric in HEADLINE[stage.name]:
            if (value := stage.last(metric)) is not None:
                yield f"{METRICS[metric].label}, {TITLES[stage.name]}", format_value(value)


def _stage(stage: StageRecord, charts: Charts) -> Section:
    """The curves of a stage by question."""
    found, subsections = charts_of(stage), []
    for question in QUESTIONS:
        parts = tables.time_by_phase(stage) if question == TIME else []
        if found[question]:
            subsections.append(Subsection(heading=question, charts=charts.draw(found[question]), parts=parts))
        if question == TIME and stage.timeline and stage.timeline.actors:
            subsections.append(_utilisation(stage.timeline, charts))
    if others := found[OTHER]:
        subsections.append(Subsection(heading=f"{OTHER} ({len(others)})", charts=charts.draw(others), is_folded=True))
    return Section(title=TITLES[stage.name], subsections=subsections)


def _utilisation(timeline: Timeline, charts: Charts) -> Subsection:
    """The actors' busy times, and the last steps."""
    curves = charts.draw([utilisation_chart(timeline)]) if len(timeline.steps) > 1 else []
    tables_and_strip = [tables.utilisation(timeline), draw_strip(timeline)]
    return Subsection(heading="Who was busy?", charts=curves, parts=tables_and_strip)


def _tables(run: RunRecord) -> Iterator[Section]:
    """The sections after the stages; without subsections if the run has no such data."""
    counts = [table for stage in run.stages for table in tables.counts(stage)]
    yield _section("What broke and was replaced", [*counts, *tables.members(run), *tables.events(run)])
    compared = [tables.pairs(run.comparison)] if run.comparison else []
    answers = [tables.answers(stage) for stage in run.stages if stage.answers]
    yield _section("Before and after", compared + answers)
    for stage in run.stages:
        yield _section(f"Samples along {TITLES[stage.name]}", [tables.samples(stage)] if stage.samples else [])
    summaries = [stage for stage in run.stages if stage.summary]
    subsections = [Subsection(heading=TITLES[stage.name], parts=[tables.pairs(stage.summary)]) for stage in summaries]
    yield Section(title="Summary", subsections=subsections)
    yield _section("Configuration", tables.configuration(run))


def _section(title: str, parts: Sequence[Markup]) -> Section:
    return Section(title=title, subsections=[Subsection(parts=parts)] if parts else [])
