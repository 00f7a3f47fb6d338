"""A run's folder as values: whatever of it is there, however far the run has come.

What cannot be read is left out and said in ``notes``: a report is asked for above all where something went wrong.
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
"""In the order in which they run, which is that of the page."""

Row = Mapping[str, Any]
Points = tuple[tuple[float, float | None], ...]
"""(step, value) by rising step; None where the value was not finite."""

_MOST = 1e300  # beyond it the span of an axis would not be finite
_STAGE_FILES = ("metrics.jsonl", "events.jsonl", "config.yaml", "done.json")


@dataclass(frozen=True, kw_only=True)
class StageRecord:
    """What one stage left."""

    name: str
    state: str
    """In words: finished and when, or how far it has come."""
    metrics: Mapping[str, Points]
    samples: Sequence[Row]
    answers: Sequence[Row]
    """Held-out prompts with the answers ``before`` and ``after``."""
    events: Sequence[Row]
    summary: Row
    config: Row
    """The resolved recipe, without secrets."""
    timeline: Timeline | None = None
    """Who did what when; None where there is none with a step in it."""

    def last(self, metric: str) -> float | None:
        """The last finite value of a metric; None where it has none."""
        return next((value for _, value in reversed(self.metrics.get(metric, ())) if value is not None), None)

    def first(self, metric: str) -> float | None:
        """The first finite value of a metric; None where it has none."""
        return next((value for _, value in self.metrics.get(metric, ()) if value is not None), None)


@dataclass(frozen=True, kw_only=True)
class RunRecord:
    """What a run left, its stages in the order of ``STAGES``."""

    name: str
    stages: Sequence[StageRecord]
    comparison: Row
    """Outcome of the blind comparison before against after; empty where there was none."""
    notes: Sequence[str]
    """What of the folder could not be read, or was left aside."""


def read_run(root: Path) -> RunRecord:
    """Read ``runs/<name>``.

    Raises:
        UserError: it is no run's folder, or it cannot be read.
    """
    notes: list[str] = []
    try:
        found = [name for name in STAGES if _is_stage(root / name)]
        if not found:
            raise _no_run(root)
        stages = tuple(_read_stage(root / name, notes) for name in found)
        comparison = _object(root / "evaluation" / "summary.json", notes)
        notes += [f"{path.name}: an earlier attempt, not in this report" for path in _set_aside(root)]
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


def _set_aside(root: Path) -> list[Path]:
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
        return f"unfinished; last seen in {status['phase']} of step {status.get('step')}"
    return "unfinished"


def _series(rows: Sequence[Row]) -> dict[str, Points]:
    """By metric. Lines without a step, and values that are neither numbers nor null, are no points."""
    found: defaultdict[str, list[tuple[float, float | None]]] = defaultdict(list)
    for row in rows:
        step = number(row.get("step"))
        for name, value in row.items() if step is not None else ():
            if name != "step" and (value is None or number(value) is not None):
                found[name].append((step or 0.0, number(value)))
    return {name: tuple(sorted(points, key=lambda point: point[0])) for name, points in found.items()}


def number(value: Any) -> float | None:
    """``value`` as a float where it is a finite number that can be drawn; None otherwise."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) < _MOST:
        return None
    return float(value) if math.isfinite(value) else None


def _rows(path: Path, notes: list[str]) -> list[Row]:
    """The whole lines of a JSONL file, none where it is not there."""
    if not path.is_file():
        return []
    lines = path.read_bytes().split(b"\n")
    rows = [parsed(line) for line in lines[:-1] if line.strip()]
    if bad := sum(row is None for row in rows):
        notes.append(f"{path.parent.name}/{path.name}: {bad} unreadable lines left out")
    if lines[-1].strip():
        notes.append(f"{path.parent.name}/{path.name}: its last line is not whole and left out")
    return [row for row in rows if row is not None]


def _object(path: Path, notes: list[str]) -> Row:
    """The object in a JSON file, without secrets; empty where the file is not there."""
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
    if not isinstance(config, dict):  # shown as text it could show a secret that no key gives away
        notes.append(f"{path.parent.name}/{path.name}: unreadable")
        return {}
    return dict(without_secrets(config))


def flat(config: Row, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every ``key.path`` of a nested configuration with its value; an empty mapping is a value."""
    for key, value in config.items():
        if isinstance(value, Mapping) and value:
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
