"""Redirects the output of frameworks to a file.

Ray, vLLM, DeepSpeed and their child processes print through loggers, warnings, C++ streams and progress bars. All of it
reaches file descriptors 1 and 2, which are redirected here: nothing is lost, and no framework needs special treatment.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from rlhf.unicode import escape_in_output


@contextmanager
def quiet_framework_logs(log: Path) -> Iterator[TextIO]:
    """Context in which all output of this process and its new children is appended to ``log``.

    Yields a text stream to the original standard output, for the user. Both descriptors are restored at the end, so
    that the traceback of an error is visible to the user.
    """
    stdout, stderr = os.dup(1), os.dup(2)
    # A character that the terminal's encoding lacks must not end the run: it is replaced by a question mark.
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


def redirect_output(log: Path) -> int:
    """Append all further output of this process and its new children to ``log``, whatever characters it has.

    Returns the size of the file before, which others may have begun.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    begins = os.fstat(file).st_size
    _flush()
    os.dup2(file, 1)
    os.dup2(file, 2)
    os.close(file)
    escape_in_output()
    return begins


def _flush() -> None:
    """Flush Python's buffers to where the descriptors point now."""
    sys.stdout.flush()
    sys.stderr.flush()
