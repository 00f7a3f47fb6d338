"""``rlhf report RUN``: writes the page of a run's folder."""

from __future__ import annotations

import argparse
from pathlib import Path

PURPOSE = "write one HTML page about a run"
EXAMPLE = "rlhf report runs/quickstart"


def add_options(command: argparse.ArgumentParser) -> None:
    """Add a run's folder and the output file."""
    command.add_argument("run", type=Path, help="the run's folder, runs/<name>")
    command.add_argument("--out", type=Path, metavar="FILE", help="file to write (default: report.html in that folder)")


def run(options: argparse.Namespace) -> None:
    """Write the page and print its path.

    Raises:
        UserError: the folder has no run, or the page cannot be written.
    """
    from launch.report.page import write_report

    print(write_report(options.run, options.out))
