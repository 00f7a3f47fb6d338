"""Reports the rows that were read and quarantined: a summary of one screen, and a file with every bad row."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rlhf.records import BadRow, Loaded
from rlhf.storage.jsonl import to_line

PLACES_SHOWN = 3
COLUMNS_SHOWN = 8
LONGEST_DETAIL = 240
"""Characters of what is said of a bad row."""


def describe(loaded: Loaded, name: str) -> str:
    """Summarise a data set: counts, quarantined rows by reason with their first positions, and columns that are not
    read."""
    head = ", ".join([f"{name}: {len(loaded.rows):,} rows", *_count_quarantined(loaded.bad)])
    repeated = (
        [f"  {loaded.repeated:,} × the prompt at the beginning of an answer: left out"] if loaded.repeated else []
    )
    bad = [describe_bad(loaded.bad)] if loaded.bad else []
    remarks = [f"  {remark}" for remark in loaded.remarks]
    return "\n".join([head, *bad, *repeated, *remarks, *_unused(loaded)])


def _count_quarantined(bad: Sequence[BadRow]) -> list[str]:
    """Numbers of malformed rows, and of ties, which are not faults."""
    faults = sum(row.is_fault for row in bad)
    ties = len(bad) - faults
    numbers = ((faults, "bad row"), (ties, "tie"))
    counts = [f"{number:,} {what}{'s' if number > 1 else ''}" for number, what in numbers if number]
    return [" and ".join(counts) + " quarantined"] if counts else []


def _unused(loaded: Loaded) -> list[str]:
    if not loaded.unused:
        return []
    return [
        f"  not read: {listed(loaded.unused)} (data.columns maps a column to a name that is read, data.ignore "
        "silences this)"
    ]


def listed(names: Sequence[str]) -> str:
    """The first names of columns, and the number of the others."""
    more = f" and {len(names) - COLUMNS_SHOWN} more" if len(names) > COLUMNS_SHOWN else ""
    return ", ".join(f"{name!s:.40}" for name in names[:COLUMNS_SHOWN]) + more if names else "none"


def describe_bad(bad: Sequence[BadRow]) -> str:
    """One line per reason, the most frequent first."""
    groups: dict[str, list[BadRow]] = {}
    for row in bad:
        groups.setdefault(row.category, []).append(row)
    return "\n".join(_line(category, rows) for category, rows in sorted(groups.items(), key=lambda item: -len(item[1])))


def _line(category: str, rows: list[BadRow]) -> str:
    detail = _shorten(rows[0].reason.removeprefix(category))
    if detail and len({row.reason for row in rows}) > 1:
        detail = f", for example{detail}"
    places = ", ".join(f"{Path(row.source.file).name}:{row.source.line}" for row in rows[:PLACES_SHOWN])
    more = ", ..." if len(rows) > PLACES_SHOWN else ""
    return f"  {len(rows):,} × {category}{detail} ({places}{more})"


def _shorten(detail: str) -> str:
    """A detail of one or two lines, cut between words."""
    if len(detail) <= LONGEST_DETAIL:
        return detail
    whole = detail[:LONGEST_DETAIL].rpartition(" ")[0]
    return f"{whole or detail[:LONGEST_DETAIL]} …"


def write_bad_rows(path: str | Path, bad: Sequence[BadRow]) -> None:
    """Write every bad row as one JSON line: file, line, reason."""
    rows = ({"file": row.source.file, "line": row.source.line, "reason": row.reason} for row in bad)
    Path(path).write_text("".join(map(to_line, rows)), encoding="utf-8")
