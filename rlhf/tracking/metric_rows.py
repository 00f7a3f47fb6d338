"""Reads ``metrics.jsonl`` back: the step, and numbers by name, in every row."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rlhf.storage.jsonl import read_lines
from rlhf.storage.reading import damaged

FIX = "restore the file, or remove what is damaged"


def read_metric_rows(path: Path, size: int | None = None) -> list[dict[str, Any]]:
    """Rows of a ``metrics.jsonl``; empty if there is no file. Numbers that were not finite are None.

    Args:
        size: read only the first ``size`` bytes.

    Raises:
        UserError: the file cannot be read, or a row is none of a step's metrics.
    """
    rows = read_lines(path, size)
    for number, row in enumerate(rows, start=1):
        if type(row.get("step")) is not int or not all(map(_is_metric, row.values())):
            raise damaged(path, f"has no metrics of a step in line {number}", FIX)
    return rows


def _is_metric(value: object) -> bool:
    return value is None or (isinstance(value, (int, float)) and not isinstance(value, bool))
