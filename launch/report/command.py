"""``rlhf report RUN``: writes the page of a run's folder, or of a cycle's."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

PURPOSE = "write one HTML page about a run, or about the rounds of a cycle"
EXAMPLE = "rlhf report runs/quickstart"


def run(
    folder: Annotated[Path, typer.Argument(metavar="RUN", help="the folder of the run or the cycle, runs/<name>")],
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="file to write (default: report.html in that folder)")
    ] = None,
) -> None:
    """Write the page and print its path.

    Raises:
        UserError: the folder has no run, or the page cannot be written.
    """
    from datetime import UTC, datetime

    from launch.report.cycle import cycle_page, is_cycle
    from launch.report.page import NAME, write_page, write_report

    if is_cycle(folder):
        print(write_page(cycle_page(folder, datetime.now(UTC)), out or folder / NAME))
    else:
        print(write_report(folder, out))
