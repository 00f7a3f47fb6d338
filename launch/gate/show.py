"""Tables of a gate on the console."""

from __future__ import annotations

from typing import TextIO

import rich.console
from rich.table import Table
from rich.text import Text

from rlhf.serving.gate_report import GateTable
from rlhf.tracking.console import PLAIN_WIDTH, plain_text

STYLES = {"pass": "green", "fail": "bold red", "inconclusive": "yellow"}


def show_table(title: str, table: GateTable, stream: TextIO) -> None:
    """Print a table; outcomes have colours on a terminal."""
    console = rich.console.Console(file=stream, width=None if stream.isatty() else PLAIN_WIDTH, highlight=False)
    shown = Table(title=Text(plain_text(title), style="bold"), title_justify="left")
    for name in table.columns:
        shown.add_column(plain_text(name), overflow="fold")
    for row in table.rows:
        shown.add_row(*(Text(plain_text(cell), style=STYLES.get(cell, "")) for cell in row))
    console.print(shown)
