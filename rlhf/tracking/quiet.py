"""Keep the chatter of the frameworks off the screen and in a file.

Ray, vLLM, DeepSpeed and their child processes print through loggers, warnings, C++ streams and progress bars. All of it
ends at file descriptors 1 and 2, so that is where it is turned aside: nothing is lost and no framework needs to be
known by name.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO


@contextmanager
def quiet_framework_logs(log: Path) -> Iterator[TextIO]:
    """Within the block, all that this process and the children it starts print is added to ``log``.

    Yields a text handle to the real standard output, for what the user is meant to see. Errors that leave the block are
    printed where the user sees them, since both descriptors are back in place by then.
    """
    stdout, stderr = os.dup(1), os.dup(2)
    # A character that the terminal cannot show must not end the run: it is shown as a question mark.
    encoding = sys.__stdout__.encoding if sys.__stdout__ else None
    console = os.fdopen(os.dup(stdout), "w", buffering=1, encoding=encoding, errors="replace")
    try:
        redirect_output(log)
        with console:
            yield console
    finally:
        _flush()
        for saved, descriptor in ((stdout, 1), (stderr, 2)):
            os.dup2(saved, descriptor)
            os.close(saved)


def redirect_output(log: Path) -> None:
    """From now on, all that this process and the children it starts print is added to ``log``."""
    log.parent.mkdir(parents=True, exist_ok=True)
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    _flush()
    os.dup2(file, 1)
    os.dup2(file, 2)
    os.close(file)


def _flush() -> None:
    """What Python still holds belongs to where the descriptors point now."""
    sys.stdout.flush()
    sys.stderr.flush()
