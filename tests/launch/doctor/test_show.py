"""Findings as table and JSON."""

from __future__ import annotations

from io import StringIO

from launch.doctor.findings import Row, failed, not_applicable, ok
from launch.doctor.show import as_values, by_check, counts, show

ROWS = [
    Row(check="GPUs", node="a", finding=not_applicable("no NVIDIA GPU")),
    Row(check="clock", node="a", finding=ok("+0.1 ms")),
    Row(check="GPUs", node="b", finding=failed("[red]no driver\x1b[31m", "install it")),
]


def test_rows_of_one_check_stand_together() -> None:
    assert [(row.check, row.node) for row in by_check(ROWS)] == [("GPUs", "a"), ("GPUs", "b"), ("clock", "a")]


def test_the_table() -> None:
    """A failed row has its fix below it; a machine's text can neither style nor move anything."""
    stream = StringIO()
    show(ROWS, stream)
    said = stream.getvalue()
    assert "[red]no driver[31m" in said and "\x1b" not in said
    lines = [line.rstrip() for line in said.splitlines()]
    assert next(i for i, line in enumerate(lines) if "install it" in line) == 1 + next(
        i for i, line in enumerate(lines) if "no driver" in line
    )
    assert lines[-1] == "1 ok, 1 failed, 1 not applicable"


def test_the_json() -> None:
    values = as_values(ROWS)
    assert values["counts"] == counts(ROWS) == {"ok": 1, "warning": 0, "failed": 1, "not applicable": 1}
    assert values["rows"][1] == {"check": "clock", "node": "a", "status": "ok", "found": "+0.1 ms", "fix": ""}
