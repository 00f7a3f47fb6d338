"""The tables of the page: times, failures, answers, and configuration."""

from __future__ import annotations

import json
import random
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

from launch.report.markup import Cell, Markup, element, folded, joined, table, text
from launch.report.read import Row, RunRecord, StageRecord, flat, number
from launch.report.timeline import Timeline
from rlhf.metrics import labelled

MOST_EVENTS, MOST_ANSWERS, SAMPLED_STEPS, MOST_ACTORS = 1000, 60, 10, 200
"""Most rows on the page; the files hold all."""
WHOLE = "step"
"""The phase that contains the others."""
TROUBLE = ("actor_died", "actor_stalled", "actor_failed")
COUNTS = labelled("health/restarts", "health/redispatched", "health/set_aside", "health/seconds_lost", "perf/goodput")
_SAID = ("what", "message", "why", "error", "reason", "path", "where")  # the first of these is what an event says
_COLUMNS = ("time", "kind", "step", "member", "seconds")


def time_by_phase(stage: StageRecord) -> Markup:
    """Seconds of every ``time/<phase>``, and its share of the steps; phases may overlap."""
    seconds = {
        metric.removeprefix("time/"): [value for _, value in points if value is not None]
        for metric, points in stage.metrics.items()
        if metric.startswith("time/")
    }
    parts = {phase: values for phase, values in seconds.items() if phase != WHOLE and values}
    if not parts:
        return Markup()
    whole = sum(seconds.get(WHOLE, ())) or sum(map(sum, parts.values())) or 1.0
    rows = [_phase(phase, values, sum(values) / whole) for phase, values in parts.items()]
    columns = ("phase", "seconds", "steps", "mean", "longest", "share of the steps' time, %", "")
    return table(columns, sorted(rows, key=lambda row: -float(row[1] or 0)), label=f"time by phase, {stage.name}")


def _phase(phase: str, values: Sequence[float], share: float) -> list[Cell]:
    width = f"{100 * min(max(share, 0.0), 1.0):.2f}"
    bar = Markup(f'<svg class="bar" viewBox="0 0 100 6"><rect class="dot-0" width="{width}" height="6"/></svg>')
    total = sum(values)
    return [phase, round(total, 3), len(values), total / len(values), max(values), round(100 * share, 2), bar]


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
    some = _omission_note(len(rows), len(timeline.actors), "actors", "trace.json")
    older = "" if not timeline.older else f", of the newest of {timeline.older + 1} files"
    note = element("p", f"from trace.json{older}: {len(timeline.steps)} steps; overlaps count once", class_="note")
    return joined([some, table(columns, rows, label="busy share by actor"), note])


def _busy(actor: str, timeline: Timeline) -> list[Cell]:
    shares, bubbles = timeline.busy(actor), timeline.bubbles(actor)
    lengths = {step: end - begin for step, (begin, end) in timeline.steps.items()}
    whole = sum(shares[step] * lengths[step] for step in shares) / sum(lengths.values())
    percents = [round(100 * share, 1) for share in (whole, min(shares.values()), max(shares.values()))]
    seconds, step, phase = max(bubbles, default=(0.0, None, None))
    return [actor, *percents, sum(length for length, *_ in bubbles) / len(lengths), round(seconds, 3), step, phase]


def counts(stage: StageRecord) -> Markup:
    """The stage's counters of losses; empty if it has none."""
    found = {name: stage.last(metric) for name, metric in COUNTS.items()}
    if all(value is None for value in found.values()):
        return Markup()
    return pairs({f"{name}, {stage.name}": value for name, value in found.items()})


def members(run: RunRecord) -> Markup:
    """By actor: number and duration of its losses and replacements."""
    lost: defaultdict[tuple[str, str], list[Row]] = defaultdict(list)
    for stage in run.stages:
        for event in stage.events:
            if event.get("kind") in (*TROUBLE, "actor_replaced"):
                lost[stage.name, str(event.get("member"))].append(event)
    rows = [_member(*key, events) for key, events in lost.items()]
    columns = ("stage", "actor", "died", "stalled", "failed", "replaced", "seconds until replaced, mean", "longest")
    return table(columns, rows, label="actors that were lost") if rows else Markup()


def _member(stage: str, name: str, events: Sequence[Row]) -> list[Cell]:
    times = [number(event.get("seconds")) for event in events if event.get("kind") == "actor_replaced"]
    seconds = [value for value in times if value is not None]
    mean = sum(seconds) / len(seconds) if seconds else None
    deaths = [sum(event.get("kind") == kind for event in events) for kind in TROUBLE]
    return [stage, name, *deaths, len(times), mean, max(seconds, default=None)]


def events(run: RunRecord) -> Markup:
    """The newest ``MOST_EVENTS`` events."""
    rows = [(str(event.get("time", "")), stage.name, event) for stage in run.stages for event in stage.events]
    rows.sort(key=lambda row: row[0])
    cells = [_event(stage, event) for _, stage, event in rows[-MOST_EVENTS:]]
    columns = ("time", "stage", "event", "step", "actor", "seconds", "what happened")
    return joined(
        [_omission_note(len(cells), len(rows), "events", "events.jsonl"), table(columns, cells, label="events")]
    )


def _event(stage: str, event: Row) -> list[Cell]:
    said = next((key for key in _SAID if event.get(key)), "")
    rest = {key: value for key, value in event.items() if key not in (*_COLUMNS, said) and value not in (None, "")}
    told = element("div", _as_plain_text(event.get(said)) if said else "", class_="text")
    more = folded("more", joined([element("p", f"{key}: {_as_plain_text(value)}") for key, value in rest.items()]))
    time, kind, step, member, seconds = (_cell(event.get(key)) for key in _COLUMNS)
    return [time, stage, kind, step, member, seconds, Markup(told + more) if rest else Markup(told)]


def answers(stage: StageRecord) -> Markup:
    """Held-out prompts with both answers, changed ones first."""
    rows = sorted(stage.answers, key=lambda row: row.get("before") == row.get("after"))[:MOST_ANSWERS]
    cells = [[_cell(row.get(key)) for key in ("prompt", "before", "after")] for row in rows]
    some = _omission_note(len(cells), len(stage.answers), "prompts", "answers.jsonl")
    return joined([some, table(("prompt", "before", "after"), cells, label=f"answers before and after {stage.name}")])


def samples(stage: StageRecord) -> Markup:
    """For steps spread over the run: the best response, the worst, and a random one."""
    cells = [[which, *_sample(row)] for row, which in chosen(stage.samples)]
    columns = ("which", "step", "score", "KL", "end", "prompt", "response")
    some = _omission_note(len(cells), len(stage.samples), "samples", "samples.jsonl")
    return joined([some, table(columns, cells, label=f"samples along {stage.name}")])


def _sample(row: Row) -> list[Cell]:
    return [_cell(row.get(key)) for key in ("step", "score", "kl", "finish_reason", "prompt", "response")]


def chosen(rows: Sequence[Row]) -> Iterator[tuple[Row, str]]:
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


def configuration(run: RunRecord) -> Markup:
    """All settings; with a column for each stage if stages ran with different ones."""
    configs = {stage.name: dict(flat(stage.config)) for stage in run.stages if stage.config}
    if not configs:
        return Markup()
    if all(config == next(iter(configs.values())) for config in configs.values()):
        configs = {"value": next(iter(configs.values()))}
    keys = dict.fromkeys(key for config in configs.values() for key in config)
    rows = [[key, *(_cell(config.get(key)) for config in configs.values())] for key in keys]
    return table(("setting", *configs), rows, label="configuration")


def pairs(rows: Row) -> Markup:
    """A table of names and values."""
    return table(("", "value"), [[str(name), _cell(value)] for name, value in rows.items()], label="summary")


def _omission_note(shown: int, there: int, what: str, file: str) -> Markup:
    """A note on omitted rows."""
    return element("p", f"{shown} of {there} {what}; all are in {file}", class_="note") if shown < there else Markup()


def _cell(value: Any) -> Cell:
    """Keep numbers as numbers, so that they sort."""
    return value if value is None or number(value) is not None else _as_plain_text(value)


def _as_plain_text(value: Any) -> str:
    """Text unchanged, other values as JSON."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def heading(level: int, title: str) -> Markup:
    """A heading that the table of contents can link to."""
    return Markup(f'<h{level} id="{anchor(title)}">{text(title)}</h{level}>')


def anchor(title: str) -> str:
    """An id for links, of letters and dashes."""
    return "".join(letter if letter.isalnum() else "-" for letter in title.lower()).strip("-")
