"""Draws curves as SVG, on which the page's script reads values at the pointer; on a picture by matplotlib it could not.

Colours are classes of the page's style, so one drawing serves light and dark mode. Lengths are in units of the drawing,
which the page scales to its width.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from launch.report.read import Points
from launch.report.render import format_value, render

WIDTH, HEIGHT = 480, 230
LEFT, RIGHT, TOP, BOTTOM = 58, 470, 10, 204
BOX = {"width": WIDTH, "height": HEIGHT, "left": LEFT, "right": RIGHT, "top": TOP, "bottom": BOTTOM}
MOST_DOTS = 40
"""Most points of a line that are drawn as dots too."""
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
    """One drawing, by default with steps on the horizontal axis."""

    title: str
    unit: str
    lines: Sequence[Line]
    levels: Sequence[tuple[str, float]] = ()
    """Named reference values: a limit, a baseline."""
    logarithmic: bool = False
    axis: str = "step"
    """What is on the horizontal axis."""


@dataclass(frozen=True, kw_only=True)
class Axis:
    """Maps values from ``low`` to ``high`` onto lengths from ``start`` to ``end``."""

    low: float
    high: float
    start: float
    end: float
    logarithmic: bool = False

    def position(self, value: float) -> float:
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
    if size == 0:  # a count of nothing
        return 0.0, 1.0
    if high - low <= 1e-9 * size or high == low:  # centre a flat line
        return low - (0.1 * size or 1.0), high + (0.1 * size or 1.0)
    return low - margin * (high - low), high + margin * (high - low)


def _logarithmic_ends(values: Sequence[float]) -> tuple[float, float]:
    low, high = (max(value, SMALLEST) for value in (min(values), max(values)))
    return max(low / 2, SMALLEST), high * 2


def thin(points: Points) -> Points:
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
    """A figure of the chart that is number ``number`` on the page."""
    steps, values = axes_of(chart)
    return render(
        "chart",
        chart=chart,
        number=number,
        box=BOX,
        values=[(values.position(value), name) for value, name in _label_ticks(values)],
        steps=[(steps.position(step), name) for step, name in _label_ticks(steps) if step == int(step)],
        levels=[values.position(level) for _, level in chart.levels if values.low <= level <= values.high],
        strokes=[_stroke(line, k % COLOURS, steps, values) for k, line in enumerate(chart.lines)],
    )


def _label_ticks(axis: Axis) -> list[tuple[float, str]]:
    """Ticks with enough digits to distinguish neighbours."""
    ticks = axis.ticks()
    if axis.logarithmic or len(ticks) < 2:
        return [(tick, f"{tick:.3g}") for tick in ticks]
    digits = math.floor(math.log10(max(map(abs, ticks)))) - math.floor(math.log10(ticks[1] - ticks[0])) + 1
    return [
        (tick, f"{tick:.{max(digits, 7)}g}" if abs(tick) >= 1000 else f"{tick:.{max(digits, 4)}g}") for tick in ticks
    ]


@dataclass(frozen=True, kw_only=True)
class Stroke:
    """The drawing of a line."""

    last: str
    """Name and last value."""
    colour: int
    band: str
    """Path around the interval; empty without one."""
    paths: Sequence[str]
    dots: Sequence[tuple[float, float]]


def _stroke(line: Line, colour: int, steps: Axis, values: Axis) -> Stroke:
    runs = [[(steps.position(s), values.position(v)) for s, v in run] for run in _runs(thin(line.points))]
    edge = [
        (steps.position(s), values.position(v))
        for part in (line.low, line.high[::-1])
        for s, v in part
        if v is not None
    ]
    return Stroke(
        last=_last(line),
        colour=colour,
        band=f"{_path(edge)}Z" if len(edge) >= 3 else "",
        paths=[_path(run) for run in runs],
        dots=[point for run in runs if len(run) == 1 or len(line.points) <= MOST_DOTS for point in run],
    )


def _path(points: Sequence[tuple[float, float]]) -> str:
    return f"M{'L'.join(f'{x} {y}' for x, y in points)}"


def _last(line: Line) -> str:
    values = [value for _, value in line.points if value is not None]
    return f"{line.name}, last {format_value(values[-1])}" if values else f"{line.name}, no number"


def _runs(points: Points) -> list[list[tuple[float, float]]]:
    """Split points at values that are not finite, which are not connected."""
    runs: list[list[tuple[float, float]]] = [[]]
    for step, value in points:
        if value is None:
            runs.append([])
        else:
            runs[-1].append((step, value))
    return [run for run in runs if run]


def readings(chart: Chart) -> list[list[float | str]]:
    """For the pointer: the position of every drawn step, and the lines' values as text."""
    axis, found = axes_of(chart)[0], dict[float, list[str]]()
    for line in chart.lines:
        for step, value in thin(line.points):
            reading = "not finite" if value is None else f"{value:.6g}"
            found.setdefault(step, []).append(f"{line.name} {reading}" if len(chart.lines) > 1 else reading)
    return [[axis.position(step), f"{chart.axis} {step:g}: {', '.join(found[step])}"] for step in sorted(found)]
