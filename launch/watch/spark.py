"""Draws a column of numbers as a line of small bars."""

from __future__ import annotations

from collections.abc import Sequence

BARS = "▁▂▃▄▅▆▇█"


def sparkline(values: Sequence[float | None], width: int) -> str:
    """At most ``width`` bars from the lowest value to the highest; more values are averaged in groups.

    A missing value is a blank. Equal values are bars of the lowest height.
    """
    means = _grouped(values, width)
    known = [value for value in means if value is not None]
    if not known:
        return ""
    low, span = min(known), max(known) - min(known)
    return "".join(" " if value is None else BARS[_height(value - low, span)] for value in means)


def _height(above: float, span: float) -> int:
    return min(len(BARS) - 1, int(above / span * len(BARS))) if span > 0 else 0


def _grouped(values: Sequence[float | None], width: int) -> list[float | None]:
    groups = min(width, len(values))
    edges = [i * len(values) // groups for i in range(groups + 1)] if groups > 0 else [0]
    return [_mean(values[begin:end]) for begin, end in zip(edges, edges[1:], strict=False)]


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None
