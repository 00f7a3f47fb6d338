"""Outcome of a stage: a few values under stable names, by which runs are sorted and compared."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rlhf.metrics import METRICS
from rlhf.secrets import without_secrets

BEST: Mapping[str, str] = {
    "score": "objective/scores",
    "holdout_score": "holdout/score",
    "eval_accuracy": "eval/accuracy",
    "eval_loss": "eval/loss",
}
"""Metrics whose best value and step are reported."""
LAST: Mapping[str, str] = {
    "final_score": "objective/scores",
    "final_kl": "objective/kl",
    "final_entropy": "policy/entropy_avg",
    "final_length": "rollout/length_mean",
    "goodput": "perf/goodput",
    "restarts": "health/restarts",
}
"""Metrics whose last value is reported."""
DONE = "done"


def outcome(history: Sequence[Mapping[str, Any]], exit_code: int, exit_reason: str) -> dict[str, Any]:
    """Compute the outcome from the rows of a stage's ``metrics.jsonl``; values of absent metrics are left out.

    Keys: ``steps``, ``best_<name>`` and ``best_<name>_step`` for the names of ``BEST``, the names of ``LAST``,
    ``exit_code`` and ``exit_reason``.
    """
    steps = {"steps": int(history[-1]["step"]) + 1} if history else {}
    found = {key: value for name, metric in BEST.items() for key, value in _best(history, name, metric)}
    for name, metric in LAST.items():
        values = [row[metric] for row in history if row.get(metric) is not None]
        found |= {name: values[-1]} if values else {}
    return {**steps, **found, "exit_code": exit_code, "exit_reason": without_secrets(exit_reason)}


def _best(history: Sequence[Mapping[str, Any]], name: str, metric: str) -> Iterator[tuple[str, Any]]:
    values = [(row[metric], row["step"]) for row in history if row.get(metric) is not None]
    if values:
        best = min if METRICS[metric].better == "lower" else max
        value, step = best(values, key=lambda pair: pair[0])
        yield from ((f"best_{name}", value), (f"best_{name}_step", step))


def reason(error: BaseException | None) -> tuple[int, str]:
    """Exit code and reason of a stage that ended with ``error``; 0 and ``done`` if it is None."""
    if error is None:
        return 0, DONE
    first_line = (str(error).strip().splitlines() or [""])[0]
    return int(getattr(error, "exit_code", 1)), f"{type(error).__name__}: {first_line}".removesuffix(": ")
