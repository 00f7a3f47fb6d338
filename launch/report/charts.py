"""Draws curves as SVG. Colours are classes of the page's style, so one drawing serves light and dark mode.

Lengths are in units of the drawing, which the page scales to its width.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from launch.report.markup import Markup, element, joined, shown, text
from launch.report.read import Points

WIDTH, HEIGHT = 480.0, 230.0
LEFT, RIGHT, TOP, BOTTOM = 58.0, 470.0, 10.0, 204.0
MOST_POINTS = 600
"""Most points of a line: more than the drawing has pixels are not visible."""
COLOURS = 8
SMALLEST = 1e-9
"""Position of 0 on a logarithmic axis: a mean of differences in float32 is larger, or is 0."""


@dataclass(frozen=True, kw_only=True)
class Line:
    """A metric, with its interval if it has one."""

    name: str
    points: Points
    low: Points = ()
    high: Points = ()


@dataclass(frozen=True, kw_only=True)
class Chart:
    """One drawing, with steps on the horizontal axis."""

    title: str
    unit: str
    lines: Sequence[Line]
    levels: Sequence[tuple[str, float]] = ()
    """Named reference values: a limit, a baseline."""
    logarithmic: bool = False


@dataclass(frozen=True, kw_only=True)
class Axis:
    """Maps values from ``low`` to ``high`` onto lengths from ``start`` to ``end``."""

    low: float
    high: float
    start: float
    end: float
    logarithmic: bool = False

    def place(self, value: float) -> float:
        """Position of a value on the drawing."""
        low, high, value = (self._linear(number) for number in (self.low, self.high, value))
        return round(self.start + (value - low) / (high - low) * (self.end - self.start), 2)

    def ticks(self) -> list[float]:
        """Four to six round values between the ends."""
        if self.logarithmic and len(powers := _powers(self.low, self.high)) > 1:
            return powers
        step = _round_step(self.high - self.low)
        return [k * step for k in range(math.ceil(self.low / step), math.floor(self.high / step) + 1)]

    def _linear(self, value: float) -> float:
        return math.log10(max(value, SMALLEST)) if self.logarithmic else value


def _round_step(span: float) -> float:
    size = 10.0 ** math.floor(math.log10(span / 6))
    return next(size * factor for factor in (1, 2, 5, 10, 20) if span / (size * factor) <= 6)


def _powers(low: float, high: float) -> list[float]:
    ends = math.ceil(math.log10(low)), math.floor(math.log10(high))
    return [10.0**k for k in range(ends[0], ends[1] + 1, max(1, (ends[1] - ends[0]) // 4))]


def axes_of(chart: Chart) -> tuple[Axis, Axis]:
    """The axes of steps and values, which cover all that is drawn."""
    points = [point for line in chart.lines for part in (line.points, line.low, line.high) for point in part]
    steps = [step for step, _ in points] or [0.0]
    values = [value for _, value in points if value is not None] or [0.0]
    first, last = _widen(min(steps), max(steps), 0.0)
    low, high = _logarithmic_ends(values) if chart.logarithmic else _widen(*_with_levels(chart, values), 0.04)
    return (
        Axis(low=first, high=last, start=LEFT, end=RIGHT),
        Axis(low=low, high=high, start=BOTTOM, end=TOP, logarithmic=chart.logarithmic),
    )


def _with_levels(chart: Chart, values: Sequence[float]) -> tuple[float, float]:
    """Extend the range to levels that are near; a distant one would flatten the curve."""
    low, high = min(values), max(values)
    near = [level for _, level in chart.levels if low - 1.5 * (high - low) <= level <= high + 1.5 * (high - low)]
    return min(low, *near, high), max(high, *near, low)


def _widen(low: float, high: float, margin: float) -> tuple[float, float]:
    size = max(abs(low), abs(high))
    if high - low <= 1e-9 * size or high == low:  # centre a flat line
        return low - (0.1 * size or 1.0), high + (0.1 * size or 1.0)
    return low - margin * (high - low), high + margin * (high - low)


def _logarithmic_ends(values: Sequence[float]) -> tuple[float, float]:
    low, high = (max(value, SMALLEST) for value in (min(values), max(values)))
    return max(low / 2, SMALLEST), high * 2


def thinned(points: Points) -> Points:
    """Reduce to about ``MOST_POINTS``: the lowest and highest of each stretch, so that no spike is lost.

    A non-finite value is kept if its stretch has nothing else.
    """
    if len(points) <= MOST_POINTS:
        return points
    stretch = math.ceil(2 * len(points) / MOST_POINTS)
    return tuple(point for i in range(0, len(points), stretch) for point in _extremes(points[i : i + stretch]))


def _extremes(points: Points) -> Points:
    finite = [(value, step) for step, value in points if value is not None]
    if not finite:
        return points[:1]
    return tuple((step, value) for value, step in sorted({min(finite), max(finite)}, key=lambda pair: pair[1]))


def draw(chart: Chart, number: int) -> Markup:
    """A figure: the drawing, the legend, and space for the readings that the page's script shows at the pointer."""
    axes = axes_of(chart)
    lines = [_line(line, k % COLOURS, *axes) for k, line in enumerate(chart.lines)]
    cursor = f'<line class="cursor" x1="0" x2="0" y1="{TOP}" y2="{BOTTOM}" visibility="hidden"/>'
    inside = joined([_grid(*axes), _levels(chart, axes[1]), *lines, cursor])
    drawing = element(
        "svg", inside, viewBox=f"0 0 {WIDTH:g} {HEIGHT:g}", role="img", tabindex=0, aria_label=_describe(chart)
    )
    unit = element("span", chart.unit, class_="unit")
    head = Markup(f"<figcaption>{element('h4', chart.title)} {unit}</figcaption>")
    foot = Markup(f"{_legend(chart)}<output></output>")
    return element("figure", joined([head, drawing, foot]), class_="chart", data_chart=number)


def _describe(chart: Chart) -> str:
    ends = [_last(line) for line in chart.lines]
    return f"{chart.title}: " + "; ".join(ends)


def _last(line: Line) -> str:
    values = [value for _, value in line.points if value is not None]
    return f"{line.name}, last {shown(values[-1])}" if values else f"{line.name}, no number"


def _legend(chart: Chart) -> Markup:
    keys = [_key(f"line-{k % COLOURS}", _last(line)) for k, line in enumerate(chart.lines)]
    return element("ul", joined(keys + [_key("level", f"{name}: {shown(value)}") for name, value in chart.levels]))


def _key(kind: str, name: str) -> Markup:
    return Markup(f'<li><svg class="key" viewBox="0 0 18 8"><path class="{kind}" d="M0 4H18"/></svg>{text(name)}</li>')


def _grid(steps: Axis, values: Axis) -> Markup:
    parts = []
    for value, name in _label_ticks(values):
        y = values.place(value)
        parts.append(
            f'<path class="grid" d="M{LEFT} {y}H{RIGHT}"/><text x="{LEFT - 6}" y="{y + 4}" class="y">{name}</text>'
        )
    for step, name in _label_ticks(steps):
        if step == int(step):
            parts.append(f'<text x="{steps.place(step)}" y="{BOTTOM + 18}" class="x">{name}</text>')
    return joined(parts)


def _label_ticks(axis: Axis) -> list[tuple[float, str]]:
    """Ticks with enough digits to distinguish neighbours."""
    ticks = axis.ticks()
    if axis.logarithmic or len(ticks) < 2:
        return [(tick, f"{tick:.3g}") for tick in ticks]
    digits = math.floor(math.log10(max(map(abs, ticks)))) - math.floor(math.log10(ticks[1] - ticks[0])) + 1
    return [
        (tick, f"{tick:.{max(digits, 7)}g}" if abs(tick) >= 1000 else f"{tick:.{max(digits, 4)}g}") for tick in ticks
    ]


def _levels(chart: Chart, values: Axis) -> Markup:
    heights = [values.place(level) for _, level in chart.levels if values.low <= level <= values.high]
    return joined([f'<path class="level" d="M{LEFT} {y}H{RIGHT}"/>' for y in heights])


def _line(line: Line, colour: int, steps: Axis, values: Axis) -> Markup:
    parts: list[str] = [_band(line, colour, steps, values)]
    for run in _runs(thinned(line.points)):
        places = [(steps.place(step), values.place(value)) for step, value in run]
        parts.append(f'<path class="line line-{colour}" d="M{"L".join(f"{x} {y}" for x, y in places)}"/>')
        if len(run) == 1 or len(line.points) <= 40:
            parts += [f'<circle class="dot dot-{colour}" cx="{x}" cy="{y}" r="2.5"/>' for x, y in places]
    return joined(parts)


def _runs(points: Points) -> list[list[tuple[float, float]]]:
    """Split points at values that are not finite, which are not connected."""
    runs: list[list[tuple[float, float]]] = [[]]
    for step, value in points:
        if value is None:
            runs.append([])
        else:
            runs[-1].append((step, value))
    return [run for run in runs if run]


def _band(line: Line, colour: int, steps: Axis, values: Axis) -> Markup:
    edge = [(steps.place(s), values.place(v)) for part in (line.low, line.high[::-1]) for s, v in part if v is not None]
    if len(edge) < 3:
        return Markup()
    return Markup(f'<path class="band band-{colour}" d="M{"L".join(f"{x} {y}" for x, y in edge)}Z"/>')


def readings(chart: Chart) -> list[list[float | str]]:
    """For the pointer: the position of every drawn step, and the lines' values as text."""
    axis, found = axes_of(chart)[0], dict[float, list[str]]()
    for line in chart.lines:
        for step, value in thinned(line.points):
            said = "not finite" if value is None else f"{value:.6g}"
            found.setdefault(step, []).append(f"{line.name} {said}" if len(chart.lines) > 1 else said)
    return [[axis.place(step), f"step {step:g}: {', '.join(found[step])}"] for step in sorted(found)]
