"""Draws the last steps as a strip of SVG: a row for the phases and one for each actor."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from markupsafe import Markup

from launch.report.charts import COLOURS
from launch.report.render import format_value, render
from launch.report.timeline import Bar, Interval, Timeline

STEPS, MOST_ROWS = 3, 40
"""Most steps, counted from the last, and most actors to draw."""
WIDTH, LEFT, TOP, ROW, BAR = 960, 150, 22, 20, 14
"""Lengths in units of the drawing: total width, start of the bars, height of a row and of a bar."""
LETTER = 6.6
"""Upper bound of a letter's mean width."""
SMALLEST = 0.4
"""Length below which a bar is not drawn, because it would not be visible."""
DIGITS = 4
"""Decimals of a bar's seconds; a bar that would have 0 s is left out."""
OTHERS = "others"


def draw_strip(timeline: Timeline) -> Markup:
    """A figure of the last steps."""
    steps = list(timeline.steps.items())[-STEPS:]
    window = min(begin for _, (begin, _) in steps), max(end for _, (_, end) in steps)
    rows = {"phases": timeline.phases} | dict(list(timeline.actors.items())[:MOST_ROWS])
    drawn = {name: list(_visible(bars, window)) for name, bars in rows.items()}
    colours = _colours(drawn)
    first, last = steps[0][0], steps[-1][0]
    title = f"steps {first} to {last}" if first != last else f"step {first}"
    seconds = f"{format_value(round(window[1] - window[0], 3))} s"
    return render(
        "strip",
        title=title,
        seconds=seconds,
        label=f"what every actor did in {title}, {seconds}",
        size={"width": WIDTH, "left": LEFT, "top": TOP, "bar": BAR},
        height=TOP + ROW * len(drawn) + 4,
        steps=[_step(step, interval, window) for step, interval in steps],
        rows=[_row(name, bars, TOP + ROW * k, window, colours) for k, (name, bars) in enumerate(drawn.items())],
        colours=colours,
    )


def _visible(bars: Sequence[Bar], window: Interval) -> Iterator[Bar]:
    """The bars in the window, cut to it, without bars inside others; short neighbours of the same name are merged."""
    least = SMALLEST * (window[1] - window[0]) / (WIDTH - LEFT)
    last: Bar | None = None
    for bar in bars:
        begin, end = max(bar.begin, window[0]), min(bar.end, window[1])
        if round(end - begin, DIGITS) <= 0 or (last is not None and end <= last.end):
            continue
        if last is not None and bar.name == last.name and begin - last.end < least:
            last = Bar(name=last.name, begin=last.begin, end=end)
            continue
        if last is not None:
            yield last
        last = Bar(name=bar.name, begin=begin, end=end)
    if last is not None:
        yield last


def _colours(rows: Mapping[str, Sequence[Bar]]) -> dict[str, int]:
    """A colour for each name, by decreasing time; the rest share one colour."""
    seconds: Counter[str] = Counter()
    for bar in (bar for bars in rows.values() for bar in bars):
        seconds[bar.name] += bar.end - bar.begin  # type: ignore[assignment]  # a Counter of seconds
    names = [name for name, _ in seconds.most_common()]
    if len(names) <= COLOURS:
        return {name: k for k, name in enumerate(names)}
    return {name: k for k, name in enumerate(names[: COLOURS - 1])} | {OTHERS: COLOURS - 1}


def _position(seconds: float, window: Interval) -> float:
    return round(LEFT + (seconds - window[0]) / (window[1] - window[0]) * (WIDTH - LEFT), 2)


def _step(step: int, interval: Interval, window: Interval) -> tuple[float, str]:
    """Position of a step's begin, and as much of its name as there is room for."""
    begin, end = interval
    x = _position(begin, window)
    names = f"step {step}, {format_value(round(end - begin, 3))} s", f"step {step}", f"{step}", ""
    return x, next(name for name in names if LETTER * len(name) <= max(0.0, _position(end, window) - x - 3))


def _row(name: str, bars: Sequence[Bar], y: int, window: Interval, colours: Mapping[str, int]) -> dict[str, Any]:
    return {"name": name, "y": y, "bars": [_bar(bar, window, colours) for bar in bars]}


def _bar(bar: Bar, window: Interval, colours: Mapping[str, int]) -> dict[str, Any]:
    x, end = _position(bar.begin, window), _position(bar.end, window)
    return {
        "colour": colours.get(bar.name, colours.get(OTHERS, 0)),
        "x": x,
        "width": max(round(end - x, 2), SMALLEST),
        "title": f"{bar.name}, {format_value(round(bar.end - bar.begin, DIGITS))} s",
    }
