"""Past decisions of a gate: whether another look is allowed, and how the numbers developed over rounds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rlhf.errors import UserError
from rlhf.serving.gate_spec import GateConfig
from rlhf.serving.kpi import MeasuredKpi
from rlhf.storage.canonical import canonical_digest
from rlhf.storage.jsonl import append_line, read_lines
from rlhf.storage.reading import damaged

HISTORY = "history.jsonl"
RECORD: Mapping[str, type] = {
    **dict.fromkeys(("digest", "artefact", "version", "for", "outcome", "question"), str),
    **{"time": float, "data": dict, "seen": dict, "kpis": list},
}
"""Keys of a decision that are read again, and their types."""


def read_history(folder: Path) -> list[dict[str, Any]]:
    """Past decisions, oldest first.

    Raises:
        UserError: the file is damaged.
    """
    rows = read_lines(folder / HISTORY)
    for number, row in enumerate(rows, start=1):
        if not all(isinstance(row.get(key), kind) for key, kind in RECORD.items()):
            fix = "restore the file: what is missing in it was perhaps a look"
            raise damaged(folder / HISTORY, f"has no decision in line {number}", fix)
    return rows


def add_decision(folder: Path, record: Mapping[str, Any]) -> None:
    """Append a decision with its time, unless it is there already."""
    if all(row.get("digest") != record["digest"] for row in read_history(folder)):
        append_line(folder / HISTORY, record, is_shared=True)


def question_of(config: GateConfig) -> str:
    """Digest of what a gate asks: everything but its data and costs."""
    kpis = {name: [str(getattr(kpi, key)) for key in kpi.__dataclass_fields__] for name, kpi in config.kpis.items()}
    rest = [config.for_stage, config.require, config.confidence, config.correction, config.looks]
    return canonical_digest([kpis, rest])


def require_look(
    history: Sequence[Mapping[str, Any]],
    config: GateConfig,
    artefact: str,
    files: Mapping[str, str],
    measured: Mapping[str, MeasuredKpi],
) -> None:
    """Check that another look at an artefact keeps the gate's errors.

    A fixed gate looks once. A sequential one looks as often as one likes, with one question and data that only grow.
    The same data may be looked at again. Without an artefact nothing is checked, since nothing can be promoted.

    Raises:
        UserError: it would not.
    """
    before = [row for row in history if artefact and row.get("artefact") == artefact]
    before = [row for row in before if row.get("for") == config.for_stage]
    question = question_of(config)
    same = [r for r in before if r.get("question") == question and sorted(r["data"].values()) == sorted(files.values())]
    if not before or same:
        return
    name = artefact[:12]
    if config.looks == "fixed":
        raise UserError(
            f"{name} has had its one look for {config.for_stage}",
            "a second look at new data or by other bars would pass a bad model more often than stated",
            "use `looks: sequential` from the first look on",
        )
    last = before[-1]
    if last.get("question") != question:
        why = "tests over several looks hold for bars and KPIs that stay"
        raise UserError(f"the gate has changed since the first look at {name}", why, "restore it, or train a new model")
    for kpi, found in measured.items():
        if not _has_grown(found, last["seen"][kpi]):
            raise UserError(
                f"the data of {kpi} do not begin with those of the last look at {name}",
                "earlier values were changed, moved or left out, and a choice of data is no test",
                "append new values to the old ones, in the order in which they came in",
            )


def _has_grown(found: MeasuredKpi, before: Mapping[str, Any]) -> bool:
    if "units" in before:
        return found.has_grown_from(before)
    arms = [arm for arm in before if arm in found.seen]
    if len(arms) != len(before):
        return False
    growth = np.array([[*found.seen[arm]] for arm in arms]) - np.array([[*before[arm]] for arm in arms])
    return bool((growth >= 0).all() and (growth[:, 1] >= growth[:, 0]).all())
