"""``rlhf report RUN``: writes the page of a run's folder."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

PURPOSE = "write one HTML page about a run"
EXAMPLE = "rlhf report runs/quickstart"


def run(
    folder: Annotated[Path, typer.Argument(metavar="RUN", help="the run's folder, runs/<name>")],
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="file to write (default: report.html in that folder)")
    ] = None,
) -> None:
    """Write the page and print its path.

    Raises:
        UserError: the folder has no run, or the page cannot be written.
    """
    from launch.report.page import write_report

    print(write_report(folder, out))
