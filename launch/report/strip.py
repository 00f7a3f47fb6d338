"""Draws the last steps as a strip of SVG: a row for the phases and one for each actor."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

from launch.report.charts import COLOURS
from launch.report.markup import Markup, element, joined, shown, text
from launch.report.timeline import Bar, Interval, Timeline

STEPS, MOST_ROWS = 3, 40
"""Most steps, counted from the last, and most actors to draw."""
WIDTH, LEFT, TOP, ROW, BAR = 960.0, 150.0, 22.0, 20.0, 14.0
"""Lengths in units of the drawing: total width, start of the bars, height of a row and of a bar."""
LETTER = 6.6
"""Upper bound of a letter's mean width."""
SMALLEST = 0.4
"""Length below which a bar is not drawn, because it would not be visible."""
OTHERS = "others"


def strip(timeline: Timeline) -> Markup:
    """A figure of the last steps."""
    steps = list(timeline.steps.items())[-STEPS:]
    window = min(begin for _, (begin, _) in steps), max(end for _, (_, end) in steps)
    rows = {"phases": timeline.phases} | dict(list(timeline.actors.items())[:MOST_ROWS])
    drawn = {name: list(_visible(bars, window)) for name, bars in rows.items()}
    colours = _colours(drawn)
    height = TOP + ROW * len(drawn) + 4
    inside = [_steps(steps, window, height)]
    inside += [_row(name, bars, k, window, colours) for k, (name, bars) in enumerate(drawn.items())]
    numbers = [step for step, _ in steps]
    title = f"steps {numbers[0]} to {numbers[-1]}" if len(numbers) > 1 else f"step {numbers[0]}"
    seconds = f"{shown(round(window[1] - window[0], 3))} s"
    label = f"what every actor did in {title}, {seconds}"
    drawing = element("svg", joined(inside), viewBox=f"0 0 {WIDTH:g} {height:g}", role="img", aria_label=label)
    unit = element("span", seconds, class_="unit")
    head = Markup(f"<figcaption>{element('h4', f'The last of it: {title}')} {unit}</figcaption>")
    box = element("div", drawing, class_="box", tabindex=0, role="region", aria_label=label)
    return element("figure", joined([head, box, _legend(colours)]), class_="strip")


def _visible(bars: Sequence[Bar], window: Interval) -> Iterator[Bar]:
    """The bars in the window, cut to it, without bars inside others; short neighbours of the same name are merged."""
    least = SMALLEST * (window[1] - window[0]) / (WIDTH - LEFT)
    last: Bar | None = None
    for bar in bars:
        begin, end = max(bar.begin, window[0]), min(bar.end, window[1])
        if begin >= end or (last is not None and end <= last.end):
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


def _place(moment: float, window: Interval) -> float:
    return round(LEFT + (moment - window[0]) / (window[1] - window[0]) * (WIDTH - LEFT), 2)


def _steps(steps: Sequence[tuple[int, Interval]], window: Interval, height: float) -> Markup:
    parts = []
    for step, (begin, end) in steps:
        x = _place(begin, window)
        names = f"step {step}, {shown(round(end - begin, 3))} s", f"step {step}", f"{step}", ""
        name = next(name for name in names if LETTER * len(name) <= max(0.0, _place(end, window) - x - 3))
        parts.append(f'<path class="grid" d="M{x} {TOP - 6}V{height:g}"/><text x="{x + 3}" y="{TOP - 8}">{name}</text>')
    return joined(parts)


def _row(name: str, bars: Sequence[Bar], k: int, window: Interval, colours: Mapping[str, int]) -> Markup:
    y = TOP + ROW * k
    parts = [f'<text class="y" x="{LEFT - 8}" y="{y + BAR - 2:g}">{text(name)}</text>']
    parts.append(f'<rect class="idle" x="{LEFT:g}" y="{y:g}" width="{WIDTH - LEFT:g}" height="{BAR:g}"/>')
    for bar in bars:
        x, end = _place(bar.begin, window), _place(bar.end, window)
        colour = colours.get(bar.name, colours.get(OTHERS, 0))
        told = element("title", f"{bar.name}, {shown(round(bar.end - bar.begin, 4))} s")
        width = max(round(end - x, 2), SMALLEST)
        parts.append(f'<rect class="dot-{colour}" x="{x}" y="{y:g}" width="{width}" height="{BAR:g}">{told}</rect>')
    return joined(parts)


def _legend(colours: Mapping[str, int]) -> Markup:
    keys = [_key(f"dot-{colour}", name) for name, colour in colours.items()]
    return element("ul", joined([*keys, _key("idle", "nothing to do")]))


def _key(kind: str, name: str) -> Markup:
    sign = f'<svg class="key" viewBox="0 0 18 8"><rect class="{kind}" width="18" height="8"/></svg>'
    return Markup(f"<li>{sign}{text(name)}</li>")
