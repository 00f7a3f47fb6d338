"""The page's figures: answers and thumbs over time by version, and true quality by version."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from examples.travel.demo.traffic import Traffic
from rlhf.tracking.plots import BLUE, GREEN, GREY, ORANGE, RED

COLOURS = {"travel-1": BLUE, "travel-2": RED, "travel-3": GREEN}
SMOOTHED = 9
"""Bins over which the fraction of thumbs down is taken."""
FEWEST = 5
"""Thumbs below which no fraction is drawn."""
NAMES = {"missing": "questions that the offline set lacks", "others": "other questions"}


def draw_traffic(traffic: Traffic, marks: Sequence[tuple[float, str]], out: Path) -> None:
    """Draw answers by version, stacked, and below the fraction of thumbs down, to a PNG.

    Args:
        marks: moments in seconds since the first request, with their names.
    """
    figure = Figure(figsize=(10, 5.2), dpi=110, layout=ConstrainedLayoutEngine())
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
    middles, width = (traffic.edges[:-1] + traffic.edges[1:]) / 2, traffic.edges[1] - traffic.edges[0]
    bottom = np.zeros(len(middles))
    for version, answers in traffic.answers.items():
        above.bar(middles, answers / width, width, bottom=bottom, color=COLOURS[version], label=version)
        bottom += answers / width
    for version, (thumbs, down) in traffic.thumbs.items():
        window = np.ones(SMOOTHED)
        count, bad = np.convolve(thumbs, window, "same"), np.convolve(down, window, "same")
        is_known = (count >= FEWEST) & (np.cumsum(thumbs) > 0) & (np.cumsum(thumbs[::-1])[::-1] > 0)
        below.plot(middles[is_known], bad[is_known] / count[is_known], ".-", color=COLOURS[version])
    for axes in (above, below):
        for at, _ in marks:
            axes.axvline(at, color="black", linestyle="--", linewidth=1.2)
        axes.grid(axis="y", alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    above.set_ylim(top=1.2 * above.get_ylim()[1])  # room for the legend
    top = above.get_ylim()[1]
    for number, (at, name) in enumerate(marks):
        above.text(at, top * (1.02 + 0.07 * (number % 2)), name, fontsize=9, ha="center", va="bottom")
    above.set_ylabel("answers per second")
    above.legend(loc="upper left", fontsize=9)
    below.set(ylabel="thumbs down", xlabel="seconds since the first request", ylim=(-0.05, 1.05))
    below.yaxis.set_major_formatter("{x:.0%}")
    figure.savefig(out, format="png")


def draw_quality(first: Mapping[str, Any], by_topic: Mapping[str, Mapping[str, Any]], out: Path) -> None:
    """Draw mean true quality with 95% intervals: before and after the first training, and by version and topic."""
    figure = Figure(figsize=(10, 3.0), dpi=110, layout=ConstrainedLayoutEngine())
    axes = figure.subplots(1, 1 + len(by_topic), sharex=True)
    _draw_means(axes[0], "first training, its own questions", first)
    for panel, (name, means) in zip(axes[1:], by_topic.items(), strict=True):
        _draw_means(panel, NAMES[name], means)
    axes[0].set_xlim(0, 1)
    figure.savefig(out, format="png")


def _draw_means(axes: Axes, title: str, means: Mapping[str, Any]) -> None:
    for row, (version, found) in enumerate(means.items()):
        value, low, high = found["mean"]
        reach = [[0.0 if low is None else value - low], [0.0 if high is None else high - value]]
        axes.errorbar([value], [row], xerr=reach, fmt="o", capsize=4, color=COLOURS.get(version, ORANGE))
    axes.set_title(title, fontsize=10)
    axes.set_yticks(range(len(means)), list(means))
    axes.set_ylim(len(means) - 0.5, -0.5)
    axes.set_xlabel("true quality")
    axes.axvline(1.0, color=GREY, linewidth=0.8)
    axes.grid(alpha=0.3)
