"""Builds the whole page: one file without network requests, which runs only its own script."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from importlib.resources import files
from pathlib import Path

from launch.report import tables
from launch.report.charts import Chart, draw, readings
from launch.report.markup import Markup, element, folded, joined, script_json, shown, source_hash, text
from launch.report.panels import OTHER, charts_of, utilisation_chart
from launch.report.read import RunRecord, StageRecord, number, read_run
from launch.report.strip import strip
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
    target = out or root / NAME
    html = page(read_run(root), datetime.now(UTC))
    try:
        write_atomically(target, html)
    except OSError as error:
        raise UserError(f"cannot write {target}", str(error), "name another file with --out") from error
    return target


def page(run: RunRecord, made: datetime) -> str:
    """The HTML of a run; ``made`` is the time shown as the page's own."""
    charts: list[Chart] = []
    sections = [(title, body) for title, body in _sections(run, charts) if body]
    links = [element("a", title, href=f"#{tables.anchor(title)}") for title, _ in sections]
    main = [element("section", joined([tables.heading(2, title), body])) for title, body in sections]
    data = script_json([readings(chart) for chart in charts])
    script, style = (files("launch.report").joinpath(f"report.{kind}").read_text("utf-8") for kind in ("js", "css"))
    return joined(
        [
            "<!DOCTYPE html>",
            '<html lang="en">',
            element("head", _head(run.name, script, style)),
            "<body>",
            _top(run, made),
            element("nav", joined(links)),
            element("main", joined(main)),
            f'<script type="application/json" id="readings">{data}</script>',
            f"<script>{script}</script>",
            "</body></html>\n",
        ]
    )


def _head(name: str, script: str, style: str) -> Markup:
    """The policy comes first, because it applies to everything after it."""
    allowed = f"script-src {source_hash(script)}; style-src {source_hash(style)}"
    policy = f"default-src 'none'; {allowed}; base-uri 'none'; form-action 'none'"
    return joined(
        [
            '<meta charset="utf-8">',
            f'<meta http-equiv="Content-Security-Policy" content="{policy}">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            '<meta name="referrer" content="no-referrer">',
            element("title", f"{name}: report"),
            f"<style>{style}</style>",
        ]
    )


def _top(run: RunRecord, made: datetime) -> Markup:
    states = [element("li", f"{TITLES[stage.name]}: {stage.state}") for stage in run.stages]
    tiles = [Markup(f"<div><b>{text(value)}</b><span>{text(name)}</span></div>") for name, value in _headline(run)]
    notes = [element("p", note, class_="note") for note in run.notes]
    when = element("p", f"made {made.isoformat(sep=' ', timespec='minutes')}", class_="note")
    tiled = element("div", joined(tiles), class_="tiles")
    return element("header", joined([element("h1", run.name), element("ul", joined(states)), tiled, *notes, when]))


def _headline(run: RunRecord) -> Iterator[tuple[str, str]]:
    if (rate := number(run.comparison.get("win rate"))) is not None:
        yield "win rate, after against before", f"{rate:.1%}"
    for stage in run.stages:
        for metric in HEADLINE[stage.name]:
            if (value := stage.last(metric)) is not None:
                yield f"{METRICS[metric].label}, {TITLES[stage.name]}", shown(value)


def _sections(run: RunRecord, charts: list[Chart]) -> Iterator[tuple[str, Markup]]:
    """Titles and contents, empty if the run has no such data; ``charts`` collects all drawings."""
    for stage in run.stages:
        yield TITLES[stage.name], _stage(stage, charts)
    yield "What broke and was replaced", _broken(run)
    yield "Before and after", _answers(run)
    for stage in run.stages:
        yield f"Samples along {TITLES[stage.name]}", tables.samples(stage) if stage.samples else Markup()
    yield "Summary", joined([_summary(stage) for stage in run.stages if stage.summary])
    yield "Configuration", tables.configuration(run)


def _stage(stage: StageRecord, charts: list[Chart]) -> Markup:
    parts: list[str] = []
    found = charts_of(stage)
    for question in QUESTIONS:
        if found[question]:
            parts += [element("h3", question), _drawn(found[question], charts)]
            parts += [tables.time_by_phase(stage)] if question == TIME else []
            parts += [_utilisation(stage.timeline, charts)] if question == TIME and stage.timeline else []
    if found[OTHER]:
        parts.append(folded(f"{OTHER} ({len(found[OTHER])})", _drawn(found[OTHER], charts)))
    return joined(parts) if parts else element("p", "no metrics yet", class_="note")


def _utilisation(timeline: Timeline, charts: list[Chart]) -> Markup:
    """The actors' busy times, and the last steps."""
    if not timeline.actors:
        return Markup()
    title = element("h3", "Who was busy?")
    drawn = _drawn([utilisation_chart(timeline)], charts) if len(timeline.steps) > 1 else Markup()
    return joined([title, drawn, tables.utilisation(timeline), strip(timeline)])


def _drawn(new: list[Chart], charts: list[Chart]) -> Markup:
    figures = [draw(chart, len(charts) + k) for k, chart in enumerate(new)]
    charts += new
    return element("div", joined(figures), class_="charts")


def _broken(run: RunRecord) -> Markup:
    accounts = [tables.counts(stage) for stage in run.stages]
    told = tables.events(run) if any(stage.events for stage in run.stages) else ""
    return joined([part for part in (*accounts, tables.members(run), told) if part])


def _answers(run: RunRecord) -> Markup:
    judged = [tables.pairs(run.comparison)] if run.comparison else []
    return joined(judged + [tables.answers(stage) for stage in run.stages if stage.answers])


def _summary(stage: StageRecord) -> Markup:
    return joined([element("h3", TITLES[stage.name]), tables.pairs(stage.summary)])
