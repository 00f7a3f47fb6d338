"""Finds the process that holds a stage's folder, and whether it is alive. The lock is read, never taken."""

from __future__ import annotations

import re
import socket
import time
from dataclasses import dataclass
from pathlib import Path

import psutil

from rlhf.recovery.facts import is_alive
from rlhf.storage.folder_lock import STALE_SECONDS, heartbeat_of
from rlhf.storage.lock_record import LockRecord, parse_record

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
    """Whether it is alive; None if it is on another machine, and its heartbeat does not tell."""


def holder_of(root: Path, stage: str) -> Holder | None:
    """The last process that took ``root/stage``; None if there is none, or it is not recorded."""
    lock = root / f".{stage}.lock"
    try:
        text, since = lock.read_text(encoding="utf-8"), lock.stat().st_mtime
    except (OSError, UnicodeDecodeError):
        return None
    name, record = text.partition("\n")[0], parse_record(text)
    found = re.fullmatch(r"process (\d+) on (\S+)", name)
    if found is None:
        return None
    process, host = int(found[1]), found[2]
    alive = _is_same_process(process, since) if host == socket.gethostname() else _has_heartbeat(lock, record)
    return Holder(name=name, since=since, alive=alive)


def _has_heartbeat(lock: Path, record: LockRecord | None) -> bool | None:
    """Whether a process of another machine is alive; None if its heartbeat is old, or the clocks differ."""
    if record is None:
        return None
    try:
        age = time.time() - heartbeat_of(lock, record).stat().st_mtime
    except FileNotFoundError:  # it has released the folder
        return False
    except OSError:
        return None
    return True if abs(age) < 2 * STALE_SECONDS else None


def _is_same_process(process: int, since: float) -> bool:
    """Whether the process that existed at ``since`` is alive, and is no later one with the same id."""
    try:
        return is_alive(process) and psutil.Process(process).create_time() <= since + _CLOCK_SPARE_SECONDS
    except psutil.Error:
        return is_alive(process)
