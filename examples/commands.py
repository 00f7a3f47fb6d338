"""Gives ``rlhf`` commands as a user does, each in a process of its own."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Collection, Sequence
from pathlib import Path

from rlhf.errors import MachineryError

LAST_LINES = 30
"""Lines of a failed command's output that its error shows."""


def give_command(title: str, words: Sequence[str], log: Path, expect: Collection[int] = (0,)) -> float:
    """Run ``rlhf`` with these words, append its output to ``log``, and print title and duration; returns the seconds.

    Args:
        expect: exit codes that are no failure.

    Raises:
        MachineryError: the command failed; the message has the end of its output.
    """
    print(f"{title}: ", end="", flush=True)
    begin = time.perf_counter()
    with log.open("a", encoding="utf-8") as out:
        done = subprocess.run([sys.executable, "-m", "launch.cli", *words], stdout=out, stderr=out, check=False)
    seconds = time.perf_counter() - begin
    print(f"{seconds:.0f} s", flush=True)
    if done.returncode not in expect:
        last = "\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-LAST_LINES:])
        raise MachineryError(f"{title} ended with exit code {done.returncode}; the end of {log}:\n{last}")
    return seconds
