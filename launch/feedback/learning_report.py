"""``rlhf feedback report``: what more labels would buy. Trains a reward model on each of several fractions of them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from launch.options import Overrides, RecipePath
from launch.run import Work, run_work
from rlhf.errors import UserError

if TYPE_CHECKING:
    from actors.session import Session
    from rlhf.feedback.ceiling import Ceiling
    from rlhf.feedback.learning import CurvePoint, Forecast, LabelCost
    from rlhf.feedback.project import ProjectSnapshot

PURPOSE = "show the learning curve over the labels, its ceiling, and what more labels would buy and cost"
EXAMPLE = "rlhf feedback report recipes/quickstart.yaml data.preferences=feedback.db"
PERCENTS = (10, 25, 50, 100)
NAME = "feedback_report"
"""Name of the JSON file and of the picture in the run's folder."""


def run(
    recipe: RecipePath,
    overrides: Overrides,
    more: Annotated[int, typer.Option(min=1, help="labels beyond those of the project to forecast for")] = 1000,
) -> None:
    """Train the reward models that are not trained yet, and print and plot what they show."""
    run_work("generate", recipe, overrides, partial(load, more=more), log="feedback-report")


def load(session: Session, more: int = 1000) -> Work:
    """Read the project; returns the function that trains and reports.

    Raises:
        UserError: ``data.preferences`` is no project, no model to start from exists, or the labels are too few.
    """
    from launch.preflight import check_updates
    from rlhf.feedback.project import is_project, read_snapshot

    path = session.recipe.data.preferences or session.recipe.data.path
    if path is None or not is_project(path):
        raise UserError(
            f"data.preferences = {path!r} is no feedback project",
            "the report needs the single votes",
            "data.preferences=feedback.db, a project made by `rlhf feedback init`",
        )
    digest = session.preferences.files[0].digest
    sessions = [_session_of(session, percent, digest) for percent in PERCENTS]
    for each in sessions:
        each.read_data("reward")
        check_updates(each, "reward")
    return partial(report, session, sessions, read_snapshot(path), more)


def _session_of(session: Session, percent: int, digest: str) -> Session:
    """The session of a run that trains a reward model on a part of the labels.

    Its name has the labels' digest: after more votes, models are trained anew. The warm-up is
    that part of the recipe's.
    """
    recipe = session.recipe
    start = session.tokenizer_folder if recipe.reward.init else session.model_of("sft", None, session.base)
    warmup = recipe.reward.optimizer.warmup_steps * percent // 100
    optimizer = replace(recipe.reward.optimizer, warmup_steps=warmup)
    smaller = replace(
        recipe,
        name=f"{recipe.name}-labels-{digest[:8]}-{percent}",
        model=replace(recipe.model, path=str(start), scratch=None),
        data=replace(recipe.data, preference_fraction=percent / 100),
        ppo=replace(recipe.ppo, policy_init=None),
        reward=replace(recipe.reward, optimizer=optimizer),
    )
    return replace(session, recipe=smaller)


@dataclass(frozen=True, kw_only=True)
class LearningReport:
    """What the labels bought, and what more would."""

    points: tuple[CurvePoint, ...]
    ceiling: Ceiling
    forecast: Forecast
    cost: LabelCost | None
    """Of the forecast's additional labels."""
    votes_per_label: float

    @property
    def accuracy_ceiling(self) -> float | None:
        """Highest expected accuracy on the majority's labels; None if no item has two votes that agree enough."""
        return self.ceiling.majority.value


def report(session: Session, sessions: Sequence[Session], snapshot: ProjectSnapshot, more: int) -> LearningReport:
    """Train, estimate, print, plot, and write the numbers to the run's folder."""
    from actors.pipeline import run_stage
    from rlhf.feedback.ceiling import estimate_ceiling
    from rlhf.feedback.judgements import independent
    from rlhf.feedback.learning import CurvePoint, forecast, label_cost

    points = []
    for each in sessions:
        each.console = session.console
        summary = run_stage(each, "reward")
        if "held-out accuracy" not in summary:
            raise UserError(
                "no comparison is held out",
                "accuracy is measured on held-out comparisons",
                "collect more votes, or raise data.held_out_fraction",
            )
        accuracy, low, high = (float(summary[f"{name}"]) for name in _ACCURACY)
        points.append(CurvePoint(labels=len(each.preferences.train), accuracy=accuracy, low=low, high=high))
    ceiling = estimate_ceiling(snapshot.items, snapshot.votes)
    judged = independent(snapshot.items, snapshot.votes)
    votes_per_label = len(judged.votes) / max(1, len(judged.items))
    found = LearningReport(
        points=tuple(points),
        ceiling=ceiling,
        forecast=forecast(points, more, ceiling.majority.value or 1.0),
        cost=label_cost(judged.votes, more, votes_per_label),
        votes_per_label=votes_per_label,
    )
    _show(session, found, more)
    _write(session.root, found)
    session.console.print(f"→ {session.root / NAME}.json, {session.root / NAME}.png")
    return found


_ACCURACY = ("held-out accuracy", "95% interval, from", "95% interval, to")


def _show(session: Session, found: LearningReport, more: int) -> None:
    lines: dict[str, float | str] = {
        f"{point.labels:,} labels": f"accuracy {point.accuracy:.3f} [{point.low:.3f}, {point.high:.3f}]"
        for point in found.points
    }
    top, expected = found.ceiling.majority, found.forecast
    lines["ceiling by the raters' noise"] = _interval(top.value, top.low, top.high) or f"unknown: {top.reason}"
    gain = _interval(expected.gain, expected.gain_low, expected.gain_high)
    accuracy = _interval(expected.accuracy, expected.low, expected.high)
    lines[f"{more:,} more labels, by the fitted curve"] = (
        f"accuracy {accuracy}, gain {gain}" if gain else f"no forecast: {expected.reason}"
    )
    if found.cost is not None:
        lines[f"cost of {more:,} labels"] = (
            f"{found.cost.minutes:,.0f} rater minutes ({found.votes_per_label:.1f} votes a label, "
            f"{found.cost.seconds_per_vote:.1f} s a vote)"
        )
    session.console.summary(f"feedback report → {session.root}", lines)


def _interval(value: float | None, low: float | None, high: float | None) -> str:
    if value is None or low is None or high is None:
        return ""
    return f"{value:.3f} [{low:.3f}, {high:.3f}]"


def _write(root: Path, found: LearningReport) -> None:
    from rlhf.feedback.plots import plot_learning_curve
    from rlhf.storage.durable import write_atomically

    content = {
        "accuracy_ceiling": found.accuracy_ceiling,
        "points": [asdict(point) for point in found.points],
        "ceiling": found.ceiling.as_json(),
        "forecast": found.forecast.as_json(),
        "cost": None if found.cost is None else asdict(found.cost),
        "votes_per_label": found.votes_per_label,
    }
    write_atomically(root / f"{NAME}.json", json.dumps(content, indent=2, allow_nan=False) + "\n")
    plot_learning_curve(found.points, found.accuracy_ceiling, found.forecast, root / f"{NAME}.png")
