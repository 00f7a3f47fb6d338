"""Shows findings as a table, or as JSON values."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, TextIO

import rich.console
from rich.table import Table
from rich.text import Text

from launch.doctor.findings import Row, Status
from rlhf.tracking.console import PLAIN_WIDTH, plain_text

STYLES: dict[Status, str] = {"ok": "green", "warning": "yellow", "failed": "bold red", "not applicable": "dim"}


def counts(rows: Sequence[Row]) -> dict[Status, int]:
    """Number of rows by status."""
    found = Counter(row.finding.status for row in rows)
    return {status: found[status] for status in STYLES}


def as_values(rows: Sequence[Row]) -> dict[str, Any]:
    """JSON values of the findings."""
    listed = [{"check": row.check, "node": row.node, **asdict(row.finding)} for row in rows]
    return {"counts": counts(rows), "rows": listed}


def show(rows: Sequence[Row], stream: TextIO) -> None:
    """Print one row per check and node, with the nodes of a check together and fixes below their findings."""
    console = rich.console.Console(file=stream, width=None if stream.isatty() else PLAIN_WIDTH, highlight=False)
    table = Table(show_edge=False, pad_edge=False)
    for name in ("check", "node", "result", "found"):
        table.add_column(name, overflow="fold", no_wrap=name in ("check", "result"))
    for row in by_check(rows):
        finding = row.finding
        text = Text(plain_text(finding.found))
        if finding.fix:
            text.append(f"\nfix: {plain_text(finding.fix)}", style="bold")
        status = Text(finding.status, style=STYLES[finding.status])
        table.add_row(Text(row.check), Text(plain_text(row.node)), status, text)
    console.print(table)
    console.print(", ".join(f"{count} {status}" for status, count in counts(rows).items() if count))


def by_check(rows: Sequence[Row]) -> list[Row]:
    """Group rows by check, in order of first appearance."""
    order = {check: index for index, check in enumerate(dict.fromkeys(row.check for row in rows))}
    return sorted(rows, key=lambda row: order[row.check])
