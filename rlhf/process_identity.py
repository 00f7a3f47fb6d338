"""Identifies processes by pid and start time, so that a signal reaches no other process.

The kernel gives a pid again once its process has ended and was reaped, on a busy machine within minutes.
"""

from __future__ import annotations

import os
import signal
import subprocess
from contextlib import suppress
from pathlib import Path
from typing import Any

_START = 19
"""Index of the start time in /proc/<pid>/stat, from the state on, which follows the name in brackets (proc(5))."""


def start_of(pid: int) -> int | None:
    """Start time of a process in clock ticks since the machine's start; None if there is no such process."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:
        return None
    return int(stat.rpartition(b")")[2].split()[_START])


def send_signal(pid: int, started: int | None, number: signal.Signals) -> bool:
    """Send a signal to the process that had the pid at ``started``; returns whether it was sent.

    Args:
        started: its ``start_of``; None if it is not known, and then no signal is sent.
    """
    try:
        handle = os.pidfd_open(pid)
    except (OSError, ValueError):
        return False
    try:
        # The handle is of whichever process has the pid now: compared after it was opened, it cannot change any more.
        if started is None or start_of(pid) != started:
            return False
        signal.pidfd_send_signal(handle, number)
    except (ProcessLookupError, PermissionError):
        return False
    finally:
        os.close(handle)
    return True


def kill_group(leader: subprocess.Popen[Any]) -> None:
    """Kill the process group of a process that was started as its leader, also if the leader has ended.

    The group's number is the leader's pid, which nobody else gets as long as the leader is not reaped or the group has
    members. A process that has it after the leader was reaped is thus another one, and nothing is left of the group.
    """
    if leader.poll() is not None and start_of(leader.pid) is not None:
        return
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(leader.pid, signal.SIGKILL)
