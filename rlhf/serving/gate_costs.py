"""What a round cost: minutes of raters, hours of GPUs, calls of a judge. What is not known is left out."""

from __future__ import annotations

from pathlib import Path

from rlhf.errors import UserError
from rlhf.feedback.snapshot import read_snapshot
from rlhf.serving.gate_spec import CostConfig
from rlhf.tracking.metric_rows import read_metric_rows

LONGEST_VOTE_SECONDS = 600.0
"""A vote that took longer counts as this: the rater was away."""
STEP_TIMES = ("time/step", "time/evaluate", "time/judge", "time/start", "time/checkpoint")
"""Times of a step's row that do not overlap."""


def read_costs(costs: CostConfig, judge_calls: int) -> dict[str, float]:
    """Costs by name: ``rater_minutes``, ``gpu_hours``, ``judge_calls``. Numbers of the file take precedence.

    Args:
        judge_calls: calls that the reports of the evaluation count.

    Raises:
        UserError: the project or a run's folder cannot be read.
    """
    found: dict[str, float] = {}
    if costs.rater_minutes is not None:
        found["rater_minutes"] = costs.rater_minutes
    elif costs.feedback is not None:
        votes = read_snapshot(costs.feedback).votes
        found["rater_minutes"] = sum(min(vote.seconds or 0.0, LONGEST_VOTE_SECONDS) for vote in votes) / 60
    if costs.gpu_hours is not None:
        found["gpu_hours"] = costs.gpu_hours
    elif costs.runs:
        found["gpu_hours"] = costs.gpus * sum(_hours(Path(run)) for run in costs.runs)
    if costs.judge_calls is not None or judge_calls:
        found["judge_calls"] = float(judge_calls if costs.judge_calls is None else costs.judge_calls)
    return found


def _hours(folder: Path) -> float:
    file = folder.expanduser() / "metrics.jsonl"
    if not file.exists():
        raise UserError(f"costs.runs: {folder} has no metrics.jsonl", fix="name folders of stages, runs/<name>/<stage>")
    rows = read_metric_rows(file)
    return sum(float(row.get(key) or 0.0) for row in rows for key in STEP_TIMES) / 3600
