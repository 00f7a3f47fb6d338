"""The tables of the page: times, failures, answers, and configuration."""

from __future__ import annotations

import json
import random
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from launch.report.read import LOSSES, Row, RunRecord, StageRecord, flatten, number
from launch.report.render import render
from launch.report.timeline import Timeline
from rlhf.metrics import labelled

MOST_EVENTS, MOST_ANSWERS, SAMPLED_STEPS, MOST_ACTORS = 1000, 60, 10, 200
"""Most rows on the page; the files hold all."""
WHOLE = "step"
"""The phase that contains the others."""
START = "start"
"""The phase before the first step, which is in none."""
COUNTS = labelled("health/restarts", "health/redispatched", "health/set_aside", "health/seconds_lost", "perf/goodput")
_TEXT_FIELDS = ("what", "message", "why", "error", "reason", "path", "where")
"""Fields of an event, of which the first one present is its text."""
_COLUMNS = ("time", "kind", "step", "member", "seconds")


@dataclass(frozen=True)
class ShareBar:
    """A cell with a bar for a share from 0 to 1."""

    share: float


@dataclass(frozen=True)
class Details:
    """A cell with a text, and details that the reader can open."""

    text: str
    details: Sequence[str]


Cell = str | float | int | None | ShareBar | Details


def table(
    columns: Sequence[str], rows: Sequence[Sequence[Cell]], label: str, omitted: str = "", note: str = ""
) -> Markup:
    """Render a table. ``label`` describes its content, ``omitted`` the rows that are left out.

    A cell without a value is aligned as the numbers of its column, if those are all its values.
    """
    values = [[cell for cell in column if cell is not None] for column in zip(*rows)]
    numeric = [bool(found) and all(isinstance(cell, int | float) for cell in found) for found in values]
    return render("table", columns=columns, rows=rows, numeric=numeric, label=label, omitted=omitted, note=note)


def time_by_phase(stage: StageRecord) -> list[Markup]:
    """A table of the seconds of every ``time/<phase>``, and its share of the steps; phases may overlap."""
    seconds = {
        metric.removeprefix("time/"): [value for _, value in points if value is not None]
        for metric, points in stage.metrics.items()
        if metric.startswith("time/")
    }
    parts = {phase: values for phase, values in seconds.items() if phase != WHOLE and values}
    if not parts:
        return []
    inside = [sum(values) for phase, values in parts.items() if phase != START]
    total = sum(seconds.get(WHOLE, ())) or sum(inside) or 1.0
    longest_first = sorted(parts.items(), key=lambda item: sum(item[1]), reverse=True)
    rows = [_phase(phase, values, None if phase == START else sum(values) / total) for phase, values in longest_first]
    columns = ("phase", "seconds", "steps", "mean", "longest", "share of the steps' time, %", "")
    return [table(columns, rows, f"time by phase, {stage.name}")]


def _phase(phase: str, values: Sequence[float], share: float | None) -> list[Cell]:
    total = sum(values)
    drawn = (None, None) if share is None else (round(100 * share, 2), ShareBar(min(max(share, 0.0), 1.0)))
    return [phase, round(total, 3), len(values), total / len(values), max(values), *drawn]


def utilisation(timeline: Timeline) -> Markup:
    """By actor: its busy share of the steps, and its longest bubble, in which it was idle."""
    rows = [_busy(actor, timeline) for actor in list(timeline.actors)[:MOST_ACTORS]]
    columns = (
        "actor",
        "busy, % of the steps",
        "least",
        "most",
        "idle s a step",
        "longest bubble, s",
        "in step",
        "during",
    )
    omitted = _omission_note(len(rows), len(timeline.actors), "actors", "trace.json")
    older = f", of the newest of {timeline.older + 1} files" if timeline.older else ""
    note = f"from trace.json{older}: {len(timeline.steps)} steps; overlaps count once"
    return table(columns, rows, "busy share by actor", omitted, note)


def _busy(actor: str, timeline: Timeline) -> list[Cell]:
    shares, bubbles = timeline.busy(actor), timeline.bubbles(actor)
    lengths = {step: end - begin for step, (begin, end) in timeline.steps.items()}
    mean = sum(shares[step] * lengths[step] for step in shares) / sum(lengths.values())
    percents = [round(100 * share, 1) for share in (mean, min(shares.values()), max(shares.values()))]
    seconds, step, phase = max(bubbles, default=(0.0, None, None))
    return [actor, *percents, sum(length for length, *_ in bubbles) / len(lengths), round(seconds, 3), step, phase]


def counts(stage: StageRecord) -> list[Markup]:
    """A table of the stage's counters of losses, if it has any."""
    found = {f"{name}, {stage.name}": stage.last(metric) for name, metric in COUNTS.items()}
    return [] if all(value is None for value in found.values()) else [pairs(found)]


def members(run: RunRecord) -> list[Markup]:
    """A table of actors that were lost: number and duration of losses and replacements."""
    lost: defaultdict[tuple[str, str], list[Row]] = defaultdict(list)
    for stage in run.stages:
        for event in stage.events:
            if event.get("kind") in (*LOSSES, "actor_replaced"):
                lost[stage.name, str(event.get("member"))].append(event)
    rows = [_member(*key, events) for key, events in lost.items()]
    columns = ("stage", "actor", "died", "stalled", "failed", "replaced", "seconds until replaced, mean", "longest")
    return [table(columns, rows, "actors that were lost")] if rows else []


def _member(stage: str, name: str, events: Sequence[Row]) -> list[Cell]:
    times = [number(event.get("seconds")) for event in events if event.get("kind") == "actor_replaced"]
    seconds = [value for value in times if value is not None]
    mean = sum(seconds) / len(seconds) if seconds else None
    deaths = [sum(event.get("kind") == kind for event in events) for kind in LOSSES]
    return [stage, name, *deaths, len(times), mean, max(seconds, default=None)]


def events(run: RunRecord) -> list[Markup]:
    """A table of the newest ``MOST_EVENTS`` events, if there are any."""
    rows = [(str(event.get("time", "")), stage.name, event) for stage in run.stages for event in stage.events]
    if not rows:
        return []
    rows.sort(key=lambda row: row[0])
    cells = [_event(stage, event) for _, stage, event in rows[-MOST_EVENTS:]]
    columns = ("time", "stage", "event", "step", "actor", "seconds", "what happened")
    return [table(columns, cells, "events", _omission_note(len(cells), len(rows), "events", "events.jsonl"))]


def _event(stage: str, event: Row) -> list[Cell]:
    text_field = next((key for key in _TEXT_FIELDS if event.get(key)), "")
    rest = {
        key: value for key, value in event.items() if key not in (*_COLUMNS, text_field) and value not in (None, "")
    }
    details = Details(
        _as_plain_text(event.get(text_field)) if text_field else "",
        [f"{key}: {_as_plain_text(value)}" for key, value in rest.items()],
    )
    time, kind, step, member, seconds = (_cell(event.get(key)) for key in _COLUMNS)
    return [time, stage, kind, step, member, seconds, details]


def answers(stage: StageRecord) -> Markup:
    """Held-out prompts with both answers, changed ones first."""
    rows = sorted(stage.answers, key=lambda row: row.get("before") == row.get("after"))[:MOST_ANSWERS]
    cells = [[_cell(row.get(key)) for key in ("prompt", "before", "after")] for row in rows]
    omitted = _omission_note(len(cells), len(stage.answers), "prompts", "answers.jsonl")
    return table(("prompt", "before", "after"), cells, f"answers before and after {stage.name}", omitted)


def samples(stage: StageRecord) -> Markup:
    """For steps spread over the run: the best response, the worst, and a random one."""
    cells = [[which, *_sample(row)] for row, which in select_samples(stage.samples)]
    columns = ("which", "step", "score", "KL", "end", "prompt", "response")
    omitted = _omission_note(len(cells), len(stage.samples), "samples", "samples.jsonl")
    return table(columns, cells, f"samples along {stage.name}", omitted)


def _sample(row: Row) -> list[Cell]:
    return [_cell(row.get(key)) for key in ("step", "score", "kl", "finish_reason", "prompt", "response")]


def select_samples(rows: Sequence[Row]) -> Iterator[tuple[Row, str]]:
    """Rows to show, each with its label; no row twice."""
    steps: defaultdict[float, list[Row]] = defaultdict(list)
    for row in rows:
        if (step := number(row.get("step"))) is not None and number(row.get("score")) is not None:
            steps[step].append(row)
    draw = random.Random(0)  # the same files give the same page
    for step in _spread_steps(sorted(steps)):
        ranked = sorted(steps[step], key=lambda row: row["score"])
        yield ranked[-1], "best"
        if len(ranked) > 1:
            yield ranked[0], "worst"
        if len(ranked) > 2:
            yield draw.choice(ranked[1:-1]), "random"


def _spread_steps(steps: Sequence[float]) -> list[float]:
    """At most ``SAMPLED_STEPS`` of the steps, including the first and the last."""
    if len(steps) <= SAMPLED_STEPS:
        return list(steps)
    return [steps[round(k * (len(steps) - 1) / (SAMPLED_STEPS - 1))] for k in range(SAMPLED_STEPS)]


def configuration(run: RunRecord) -> list[Markup]:
    """A table of all settings, if they are recorded; with a column for each stage if stages ran with different ones."""
    configs = {stage.name: dict(flatten(stage.config)) for stage in run.stages if stage.config}
    if not configs:
        return []
    if all(config == next(iter(configs.values())) for config in configs.values()):
        configs = {"value": next(iter(configs.values()))}
    keys = dict.fromkeys(key for config in configs.values() for key in config)
    rows = [[key, *(_cell(config.get(key)) for config in configs.values())] for key in keys]
    return [table(("setting", *configs), rows, "configuration")]


def pairs(rows: Row) -> Markup:
    """A table of names and values."""
    return table(("", "value"), [[str(name), _cell(value)] for name, value in rows.items()], "summary")


def _omission_note(shown: int, total: int, what: str, file: str) -> str:
    return f"{shown} of {total} {what}; all are in {file}" if shown < total else ""


def _cell(value: Any) -> Cell:
    """Keep numbers as numbers, so that they sort."""
    return value if value is None or number(value) is not None else _as_plain_text(value)


def _as_plain_text(value: Any) -> str:
    """Text unchanged, other values as JSON."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
