"""``rlhf report RUN``: the page of a run's folder."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from rlhf.errors import RLHFError
from rlhf.report.page import NAME, write_report


def add_arguments(command: argparse.ArgumentParser) -> None:
    """The command's own options."""
    command.add_argument("run", type=Path, help="the run's folder, runs/<name>")
    command.add_argument("--out", type=Path, metavar="FILE", help=f"file to write (default: {NAME} in that folder)")


def report(options: argparse.Namespace) -> None:
    """Write the page and say where it is.

    Raises:
        UserError: no run is there, or the page cannot be written.
    """
    print(write_report(options.run, options.out))


def main() -> int:
    """The command by itself; returns its exit code."""
    parser = argparse.ArgumentParser(
        prog="rlhf report", description="Make one HTML page of a run.", epilog="example: rlhf report runs/quickstart"
    )
    add_arguments(parser)
    try:
        report(parser.parse_args())
    except RLHFError as error:
        print(f"rlhf report: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
