"""Plots of a project: the accuracy of reward models over the number of labels."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from rlhf.feedback.learning import CurvePoint, Forecast
from rlhf.tracking.plots import BLUE, GREEN, GREY, ORANGE


def plot_learning_curve(points: Sequence[CurvePoint], ceiling: float | None, forecast: Forecast, out: Path) -> None:
    """Plot measured accuracies, the ceiling by the raters' noise and the forecast, with 95% intervals, to a PNG."""
    figure = Figure(figsize=(7, 4.4), dpi=120, layout=ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.12))
    axes = figure.subplots()
    labels, accuracies = [point.labels for point in points], [point.accuracy for point in points]
    reach = [[point.accuracy - point.low for point in points], [point.high - point.accuracy for point in points]]
    axes.errorbar(labels, accuracies, yerr=reach, capsize=3, fmt="o-", color=BLUE, label="measured")
    if forecast.accuracy is not None and forecast.low is not None and forecast.high is not None:
        reach = [[forecast.accuracy - forecast.low], [forecast.high - forecast.accuracy]]
        axes.errorbar(
            [forecast.labels], [forecast.accuracy], yerr=reach, capsize=3, fmt="o", color=ORANGE, label="forecast"
        )
    if ceiling is not None:
        axes.axhline(ceiling, color=GREEN, linestyle="--", label="ceiling by the raters' noise")
    axes.axhline(0.5, color=GREY, linestyle=":", label="a coin")
    axes.set_xlabel("labels trained on")
    axes.set_ylabel("held-out accuracy")
    axes.legend(loc="lower right", frameon=False)
    axes.grid(alpha=0.3)
    figure.savefig(out, format="png")
