"""Finds the process that holds a stage's folder, and whether it is alive. The lock is read, never taken."""

from __future__ import annotations

import re
import socket
from dataclasses import dataclass
from pathlib import Path

import psutil

from rlhf.recovery.facts import is_alive

_CLOCK_SPARE_SECONDS = 2.0
"""Most seconds by which the clock of file dates may be behind the clock of process starts."""


@dataclass(frozen=True, kw_only=True)
class Holder:
    """The process that took a folder last."""

    name: str
    """``process 4711 on head``."""
    since: float
    """When it took the folder, in seconds since 1970."""
    alive: bool | None
    """Whether it is alive; None if it is on another machine."""


def holder_of(root: Path, stage: str) -> Holder | None:
    """The last process that took ``root/stage``; None if there is none, or it is not recorded."""
    lock = root / f".{stage}.lock"
    try:
        text, since = lock.read_text(encoding="utf-8").partition("\n")[0], lock.stat().st_mtime
    except (OSError, UnicodeDecodeError):
        return None
    found = re.fullmatch(r"process (\d+) on (\S+)", text)
    if found is None:
        return None
    process, host = int(found[1]), found[2]
    alive = _is_same_process(process, since) if host == socket.gethostname() else None
    return Holder(name=text, since=since, alive=alive)


def _is_same_process(process: int, since: float) -> bool:
    """Whether the process that existed at ``since`` is alive, and is no later one with the same id."""
    try:
        return is_alive(process) and psutil.Process(process).create_time() <= since + _CLOCK_SPARE_SECONDS
    except psutil.Error:
        return is_alive(process)
