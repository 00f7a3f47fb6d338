"""Shows how much of a large model folder is hashed; small ones take no time."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rlhf.storage.hashing import Progress

MIB = 2**20
LARGE_BYTES = 2**31
"""Size of a folder from which the progress is shown: hashing takes seconds."""


@contextmanager
def shown_hashing() -> Iterator[Progress]:
    """Context with a progress of hashing that is shown on standard error; standard output is for results."""
    from rlhf.tracking.console import Console, Report

    with ExitStack() as shown:
        report: Report | None = None

        def progress(done: int, total: int) -> None:
            nonlocal report
            if total < LARGE_BYTES:
                return
            if report is None:
                report = shown.enter_context(Console(sys.stderr).stage("Hashing files, MiB", total // MIB))
            report(done // MIB, {})

        yield progress
