"""A command of ``rlhf`` as a job on a cluster: ``python -m launch.job COMMAND RECIPE``, started by ``rlhf submit``."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from launch.cli import main
from launch.jobs import ENDED


def run(arguments: Sequence[str]) -> int:
    """Run the command, and print its exit code last."""
    code = main(arguments)
    print(f"{ENDED}{code}", flush=True)
    return code


if __name__ == "__main__":
    sys.exit(run(sys.argv[1:]))
