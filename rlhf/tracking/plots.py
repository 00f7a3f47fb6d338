"""Plots of a run: the curves of all stages with their limits, and reward against held-out score."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from rlhf.evaluation.win_rate import WinRate
from rlhf.metrics import PANEL, Panel
from rlhf.tracking.metric_rows import read_metric_rows
from rlhf.tracking.run_folder import RunFolder

if TYPE_CHECKING:  # matplotlib is needed at the end of a run, and slow to import
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SMALLEST = 1e-9
"""Value at which zeros are drawn on a logarithmic axis."""

# Okabe and Ito's palette, distinguishable with every kind of colour vision and in grey.
BLUE, ORANGE, GREEN, RED, GREY, LIGHT = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#666666", "#bbbbbb"


@dataclass(frozen=True, kw_only=True)
class Marks:
    """Reference values of the curves; None is not drawn."""

    accuracy_ceiling: float | None = None
    """Held-out accuracy of a perfect model, given the raters' noise."""
    accuracy_baseline: float | None = None
    """Held-out accuracy of a rule that is not learned."""
    baseline_name: str = "baseline"
    """Name of that rule."""
    sft_score: float | None = None
    """Mean reward of the SFT model's answers."""
    max_kl: float | None = None
    """Cap of the mean sequence KL in nats."""
    logprob_gap_limit: float | None = None
    """Limit of the mean gap between the trainer's and the engine's log-probabilities in nats."""
    win_rate: WinRate | None = None
    """Outcome of the comparison with the SFT model."""
    scorer: str = ""
    """Scorer of that comparison."""


def plot_pipeline(root: Path, out: Path, marks: Marks = Marks()) -> None:
    """Plot the stages of a run to a PNG; the panel of a stage that has not run shows a note.

    Args:
        root: ``runs/<name>``, with ``<stage>/metrics.jsonl`` for the stages sft, reward and ppo.
        out: PNG to write.
        marks: reference values to draw with the curves.
    """
    sft, reward, ppo = (RunFolder(root, stage).metrics for stage in ("sft", "reward", "ppo"))
    figure = _figure(14)
    figure.suptitle(root.name, fontsize=15, fontweight="bold", x=0.01, ha="left")
    axes = figure.subplots(2, 3)
    _loss(axes[0, 0], sft)
    _accuracy(axes[0, 1], reward, marks)
    _metric(axes[0, 2], ppo, PANEL["Score"], "objective/scores", marks.sft_score, "SFT model", GREY)
    _metric(axes[1, 0], ppo, PANEL["KL to the reference"], "objective/kl", marks.max_kl, "cap", RED)
    _gap(axes[1, 1], ppo, marks.logprob_gap_limit)
    _win_rate(axes[1, 2], marks.win_rate, marks.scorer)
    for panel in axes.flat:
        _finish(panel)
    figure.savefig(out, format="png")


def plot_overoptimisation(metrics: Path, out: Path) -> None:
    """Plot reward and held-out score over the steps of a run to a PNG, and mark the best step.

    The x axis is the number of steps that trained a policy: s for the policy rewarded in step s, and s + 1 for the one
    evaluated after step s.

    Args:
        metrics: the PPO stage's ``metrics.jsonl``.
        out: PNG to write.
    """
    figure = _figure(7)
    reward, held_out = figure.subplots(2, 1, sharex=True)
    _title(reward, "Reward that the policy is trained on", "", "score")
    _curve(reward, metrics, "objective/scores", "batch mean")
    _title(held_out, "Held-out score, by a scorer that it is not trained on", "steps of training", "score")
    _held_out_scores(held_out, metrics)
    best = read_series(metrics, "holdout/best_step")[1]
    for panel in (reward, held_out):
        if len(best):
            panel.axvline(best[-1], color=GREEN, linestyle="--", linewidth=1.4, label=f"best: after step {best[-1]:g}")
        _finish(panel)
    figure.savefig(out, format="png")


def _figure(width: float) -> Figure:
    """An empty figure of this width in inches."""
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    return Figure(figsize=(width, 7.6), dpi=120, layout=ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.12))


def _held_out_scores(axes: Axes, metrics: Path) -> None:
    """Plot held-out scores with 95% intervals; the initial one is in the first row, under ``start_score``."""
    columns = []
    for end in ("", "_ci_low", "_ci_high"):
        steps, values = read_series(metrics, f"holdout/score{end}")
        first = read_series(metrics, f"holdout/start_score{end}")[1]
        columns.append(np.concatenate([first, values]))
        positions = np.concatenate([np.zeros(len(first)), steps + 1])
    score, low, high = columns
    if len(score):
        error = np.stack([score - low, high - score])
        axes.errorbar(
            positions, score, yerr=error, fmt="o-", color=ORANGE, capsize=4, markersize=5, label="95% interval"
        )


def read_series(metrics: Path, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Read steps and values (both (n,), float64) of the rows of a ``metrics.jsonl`` that have a number ``name``."""
    points = [(row["step"], row[name]) for row in read_metric_rows(metrics) if row.get(name) is not None]
    steps, values = np.array(points, dtype=np.float64).reshape(-1, 2).T
    return steps, values


def _loss(axes: Axes, metrics: Path) -> None:
    _title_panel(axes, "SFT", PANEL["Loss"], "update")
    _curve(axes, metrics, "train/loss", "training batch")
    steps, values = read_series(metrics, "eval/loss")
    if len(steps):
        axes.plot(steps, values, "o-", color=ORANGE, markersize=5, label=f"held out (last {values[-1]:.3f})")


def _accuracy(axes: Axes, metrics: Path, marks: Marks) -> None:
    _title_panel(axes, "Reward model", PANEL["Accuracy"], "update")
    steps, accuracy = read_series(metrics, "eval/accuracy")
    if not len(steps):
        return
    bounds = [read_series(metrics, f"eval/accuracy_ci_{end}")[1] for end in ("low", "high")]
    label = f"reward model, 95% interval (last {accuracy[-1]:.1%})"
    error = np.abs(np.stack(bounds) - accuracy)
    axes.errorbar(steps, accuracy, yerr=error, fmt="o-", color=BLUE, capsize=4, markersize=5, label=label)
    _level(axes, marks.accuracy_ceiling, "ceiling by the raters' noise", GREEN)
    _level(axes, marks.accuracy_baseline, marks.baseline_name, RED)
    axes.yaxis.set_major_formatter("{x:.0%}")
    low, high = axes.get_ylim()
    axes.set_ylim(low - 0.4 * (high - low), high)  # room for the legend under the lowest level


def _metric(
    axes: Axes, metrics: Path, panel: Panel, name: str, level: float | None, level_name: str, color: str
) -> None:
    """Plot a metric of PPO with a reference value."""
    _title_panel(axes, "PPO", panel, "step")
    if _curve(axes, metrics, name, "batch mean"):
        _level(axes, level, level_name, color)


def _gap(axes: Axes, metrics: Path, limit: float | None) -> None:
    _title_panel(axes, "PPO", PANEL["Trainer against engine"], "step")
    steps, gap = read_series(metrics, "rollout/logprob_gap_mean")
    if not len(steps):
        return
    shown = np.maximum(gap, SMALLEST)
    axes.plot(steps, shown, ".-", color=BLUE, markersize=5, label=f"gap (largest {gap.max():.1e})")
    _level(axes, limit, "limit", RED)


def _win_rate(axes: Axes, result: WinRate | None, scorer: str) -> None:
    _title(axes, "PPO against SFT, prompt by prompt", "", "")
    if result is None:
        return
    left = 0.0
    shares = ((result.wins, "better", GREEN), (result.ties, "tied", LIGHT), (result.losses, "worse", ORANGE))
    for count, name, color in shares:
        axes.barh(0, count / result.n, left=left, height=0.5, color=color, label=f"{name}: {count}")
        left += count / result.n
    error = [[result.rate - result.low], [result.high - result.rate]]
    label = f"win rate {result.rate:.1%} [{result.low:.1%}, {result.high:.1%}]"
    axes.errorbar(result.rate, 0.6, xerr=error, fmt="o", color="black", capsize=5, markersize=6, label=label)
    axes.vlines(0.5, -0.5, 0.85, color=GREY, linestyle="--", linewidth=1.4)  # ends below the legend
    axes.set(xlim=(0, 1), ylim=(-0.5, 2.2), yticks=[])
    axes.set_xlabel(f"fraction of {result.n} held-out prompts" + (f"\nscored by {scorer}" if scorer else ""))
    axes.xaxis.set_major_formatter("{x:.0%}")


def _curve(axes: Axes, metrics: Path, name: str, label: str) -> bool:
    """Plot a metric, with its running mean if it has many values; returns whether it has any."""
    steps, values = read_series(metrics, name)
    if not len(steps):
        return False
    window = max(1, len(values) // 20)
    axes.plot(steps, values, color=BLUE, alpha=0.35 if window > 1 else 1.0, linewidth=1.2, label=label)
    if window > 1:
        mean = np.convolve(values, np.ones(window) / window, mode="valid")
        middle = np.convolve(steps, np.ones(window) / window, mode="valid")
        label = f"mean of {window} (last {mean[-1]:.3g})"
        axes.plot(middle, mean, color=BLUE, linewidth=2, label=label)
    return True


def _level(axes: Axes, value: float | None, name: str, color: str) -> None:
    if value is not None:
        axes.axhline(value, color=color, linestyle="--", linewidth=1.4, label=f"{name} ({value:.3g})")


def _title_panel(axes: Axes, stage: str, panel: Panel, x: str) -> None:
    _title(axes, f"{stage}: {panel.title}", x, panel.unit)
    axes.set_yscale("log" if panel.logarithmic else "linear")


def _title(axes: Axes, title: str, x: str, y: str) -> None:
    axes.set_title(title, loc="left", fontsize=11.5, fontweight="bold")
    axes.set(xlabel=x, ylabel=y)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#dddddd", linewidth=0.8)
    axes.set_axisbelow(True)


def _finish(axes: Axes) -> None:
    if axes.has_data():
        axes.legend(fontsize=9, edgecolor="none", framealpha=0.85)
        return
    axes.text(0.5, 0.5, "no data yet", transform=axes.transAxes, ha="center", va="center", color=GREY)
    axes.set(xticks=[], yticks=[])
