"""Reads a run's folder as values, at any stage of its progress.

Unreadable files are omitted and listed in ``notes``, because reports are needed most after failures.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from launch.report.timeline import Timeline, read_timeline
from rlhf.errors import UserError
from rlhf.secrets import without_secrets
from rlhf.storage.jsonl import parsed

STAGES = ("sft", "reward", "dpo", "ppo")
"""Stages in the order in which they run and are shown."""
LOSSES = ("actor_died", "actor_stalled", "actor_failed")
"""Kinds of events about the loss of an actor."""

Row = Mapping[str, Any]
Points = tuple[tuple[float, float | None], ...]
"""(step, value) by rising step; None for values that were not finite."""

_MOST = 1e300  # beyond it, the span of an axis is not finite
_STAGE_FILES = ("metrics.jsonl", "events.jsonl", "config.yaml", "done.json")


@dataclass(frozen=True, kw_only=True)
class StageRecord:
    """Record of one stage."""

    name: str
    state: str
    """As text: when it finished, or its progress."""
    metrics: Mapping[str, Points]
    """Recorded metrics by name."""
    samples: Sequence[Row]
    """Rows of ``samples.jsonl``, in the file's order."""
    answers: Sequence[Row]
    """Held-out prompts with the answers ``before`` and ``after``."""
    events: Sequence[Row]
    """Rows of ``events.jsonl``, oldest first, without secrets."""
    summary: Row
    """Content of ``summary.json``; empty without one."""
    config: Row
    """The resolved recipe, without secrets."""
    timeline: Timeline | None = None
    """The timeline; None without one, or without a step in it."""

    def last(self, metric: str) -> float | None:
        """The finite value of a metric at its highest step; None if it has none."""
        return next((value for _, value in reversed(self.metrics.get(metric, ())) if value is not None), None)

    def first(self, metric: str) -> float | None:
        """The finite value of a metric at its lowest step; None if it has none."""
        return next((value for _, value in self.metrics.get(metric, ()) if value is not None), None)


@dataclass(frozen=True, kw_only=True)
class RunRecord:
    """Record of a run, with its stages in the order of ``STAGES``."""

    name: str
    stages: Sequence[StageRecord]
    comparison: Row
    """Result of the blind comparison of before and after; empty without one."""
    notes: Sequence[str]
    """Files that could not be read or were skipped."""


def read_run(root: Path) -> RunRecord:
    """Read ``runs/<name>``.

    Raises:
        UserError: the folder is no run's, or cannot be read.
    """
    notes: list[str] = []
    try:
        found = [name for name in STAGES if _is_stage(root / name)]
        if not found:
            raise _no_run(root)
        stages = tuple(_read_stage(root / name, notes) for name in found)
        comparison = _object(root / "evaluation" / "summary.json", notes)
        notes += [f"{path.name}: an earlier attempt, not in this report" for path in _earlier_attempts(root)]
    except OSError as error:
        raise UserError(f"cannot read {error.filename or root}", str(error.strerror or error)) from error
    return RunRecord(name=root.resolve().name, stages=stages, comparison=comparison, notes=tuple(notes))


def _is_stage(folder: Path) -> bool:
    return any((folder / name).is_file() for name in _STAGE_FILES)


def _no_run(root: Path) -> UserError:
    if not root.is_dir():
        return UserError(f"{root} is no folder", "", "give the folder of a run, runs/<name>")
    if _is_stage(root):
        return UserError(
            f"{root} is the folder of a single stage",
            "a report is made of a whole run",
            f"give the run's folder: {root.resolve().parent}",
        )
    names = ", ".join(f"{name}/" for name in STAGES)
    return UserError(
        f"{root} is no run's folder",
        f"none of the stages {names} is in it",
        "give the folder of a run, runs/<name>",
    )


def _earlier_attempts(root: Path) -> list[Path]:
    return sorted(path for name in STAGES for path in root.glob(f"{name}.interrupted-*"))


def _read_stage(folder: Path, notes: list[str]) -> StageRecord:
    return StageRecord(
        name=folder.name,
        state=_state(folder),
        metrics=_series(_rows(folder / "metrics.jsonl", notes)),
        samples=_rows(folder / "samples.jsonl", notes),
        answers=_rows(folder / "answers.jsonl", notes),
        events=[without_secrets(row) for row in _rows(folder / "events.jsonl", notes)],
        summary=_object(folder / "summary.json", notes),
        config=_config(folder / "config.yaml", notes),
        timeline=read_timeline(folder / "trace.json"),
    )


def _state(folder: Path) -> str:
    if finished := _object(folder / "done.json", []).get("finished"):
        return f"finished {str(finished).replace('T', ' ').replace('+00:00', ' UTC')}"
    status = _object(folder / "status.json", [])
    if "phase" in status:
        step = status.get("step")  # null before the first step
        return f"unfinished; last seen in {status['phase']}" + ("" if step is None else f" of step {step}")
    return "unfinished"


def _series(rows: Sequence[Row]) -> dict[str, Points]:
    """Points by metric. Lines without a step, and values that are neither numbers nor null, are skipped."""
    found: defaultdict[str, list[tuple[float, float | None]]] = defaultdict(list)
    for row in rows:
        step = number(row.get("step"))
        for name, value in row.items() if step is not None else ():
            if name != "step" and (value is None or number(value) is not None):
                found[name].append((step or 0.0, number(value)))
    return {name: tuple(sorted(points, key=lambda point: point[0])) for name, points in found.items()}


def number(value: Any) -> float | None:
    """``value`` as a float if its magnitude is below 1e300, so that it can be drawn; otherwise None."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) < _MOST:
        return None
    return float(value) if math.isfinite(value) else None


def _rows(path: Path, notes: list[str]) -> list[Row]:
    """The complete lines of a JSONL file; empty if it is missing."""
    if not path.is_file():
        return []
    lines = path.read_bytes().split(b"\n")
    rows = [parsed(line) for line in lines[:-1] if line.strip()]
    if bad := sum(row is None for row in rows):
        notes.append(f"{path.parent.name}/{path.name}: {bad} unreadable lines left out")
    if lines[-1].strip():
        notes.append(f"{path.parent.name}/{path.name}: its last line is incomplete and left out")
    return [row for row in rows if row is not None]


def _object(path: Path, notes: list[str]) -> Row:
    """The object in a JSON file, without secrets; empty if the file is missing."""
    if not path.is_file():
        return {}
    row = parsed(path.read_bytes())
    if row is None:
        notes.append(f"{path.parent.name}/{path.name}: unreadable")
    return dict(without_secrets(row or {}))


def _config(path: Path, notes: list[str]) -> Row:
    if not path.is_file():
        return {}
    try:
        config = yaml.safe_load(path.read_bytes())
    except (yaml.YAMLError, ValueError, RecursionError):
        config = None
    if not isinstance(config, dict):  # other values are not shown, because they may contain secrets without a key
        notes.append(f"{path.parent.name}/{path.name}: unreadable")
        return {}
    return dict(without_secrets(config))


def flatten(config: Row, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield every ``key.path`` of a nested configuration with its value; an empty mapping is a value."""
    for key, value in config.items():
        if isinstance(value, Mapping) and value:
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
