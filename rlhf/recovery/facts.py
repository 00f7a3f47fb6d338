"""Reads facts about a process on its node, from Linux ``/proc`` and cgroup v2.

A value that cannot be read is None: a less certain diagnosis is better than a second error.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

PROC = Path("/proc")
CGROUP = Path("/sys/fs/cgroup")
"""In a container, the container's group; on a host the root group, which has no memory files."""


@dataclass(frozen=True, kw_only=True)
class Facts:
    """Facts about one process; None is unknown. A process on a failed node has ``alive=False`` only."""

    alive: bool
    """Whether the process exists and is not a zombie (Z)."""
    process_state: str | None = None
    """State letter of ``/proc/<pid>/stat``: R runs, S sleeps, D waits for a device, T is stopped, Z is dead."""
    rss_bytes: int | None = None
    """Resident memory of the process."""
    host_available_bytes: int | None = None
    """Available memory of its node, or of its container if that is less."""
    host_total_bytes: int | None = None
    """Memory of its node, or of its container."""
    oom_kills_since_start: int | None = None
    """Processes that the kernel's OOM killer has killed since this one started."""
    heartbeat_age_seconds: float | None = None
    """Seconds since its last heartbeat; a healthy process answers one even while it computes."""
    doing: str | None = None
    """Its activity at the last heartbeat."""
    children_alive: bool | None = None
    """Whether all processes that it started are alive; None if it has none."""
    exit_text: str = ""
    """Messages about its end or failure: from Ray, the error, and the tail of its log."""


def read_facts(
    pid: int,
    *,
    children: Sequence[int] = (),
    oom_kills_before: int | None = None,
    heartbeat_age_seconds: float | None = None,
    doing: str | None = None,
    exit_text: str = "",
    proc: Path = PROC,
    cgroup: Path = CGROUP,
) -> Facts:
    """Read the facts about a process of this node.

    Args:
        children: processes that it started and needs.
        oom_kills_before: ``oom_kills()`` of this node when the process started.
    """
    total, available = host_memory(proc, cgroup)
    return Facts(
        alive=is_alive(pid, proc),
        process_state=process_state(pid, proc),
        rss_bytes=rss_bytes(pid, proc),
        host_available_bytes=available,
        host_total_bytes=total,
        oom_kills_since_start=oom_kills_since(oom_kills_before, proc, cgroup),
        heartbeat_age_seconds=heartbeat_age_seconds,
        doing=doing,
        children_alive=all(is_alive(child, proc) for child in children) if children else None,
        exit_text=exit_text,
    )


def is_alive(pid: int, proc: Path = PROC) -> bool:
    """Whether the process exists, and is more than an entry in the kernel's table (states Z and X)."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass  # it exists and belongs to another user
    return process_state(pid, proc) not in ("Z", "X")


def process_state(pid: int, proc: Path = PROC) -> str | None:
    """State letter of a process. In its file the letter follows the name in brackets, which may contain brackets."""
    words = (_text(proc / str(pid) / "stat") or "").rpartition(")")[2].split()
    return words[0] if words else None


def rss_bytes(pid: int, proc: Path = PROC) -> int | None:
    """Resident memory of a process; None once it is dead."""
    words = (_text(proc / str(pid) / "statm") or "").split()
    return int(words[1]) * os.sysconf("SC_PAGE_SIZE") if len(words) > 1 else None


def oom_kills(proc: Path = PROC, cgroup: Path = CGROUP) -> int | None:
    """Number of processes that the OOM killer has killed so far: in this container, or else on this host.

    The container's counter is preferred, because the host's includes other containers.
    """
    inside = _counters(cgroup / "memory.events").get("oom_kill")
    return inside if inside is not None else _counters(proc / "vmstat").get("oom_kill")


def oom_kills_since(before: int | None, proc: Path = PROC, cgroup: Path = CGROUP) -> int | None:
    """Increase over ``before``, an earlier ``oom_kills()`` of this node; None if either is unknown."""
    kills = oom_kills(proc, cgroup)
    return None if kills is None or before is None else kills - before


def host_memory(proc: Path = PROC, cgroup: Path = CGROUP) -> tuple[int | None, int | None]:
    """Total and available bytes of this host, or of the container if its limit is lower."""
    kib = _counters(proc / "meminfo")
    total, available = (kib[key] * 1024 if key in kib else None for key in ("MemTotal:", "MemAvailable:"))
    limit, used = (_text(cgroup / name) or "" for name in ("memory.max", "memory.current"))
    if not limit.strip().isdigit() or not used.strip().isdigit():
        return total, available
    cache = _counters(cgroup / "memory.stat").get("inactive_file", 0)  # counted as used, but reclaimable
    left = max(0, int(limit) - int(used) + cache)
    return min(int(limit), total or int(limit)), left if available is None else min(left, available)


def _counters(path: Path) -> dict[str, int]:
    """Read a file whose lines are a name and a whole number."""
    rows = [line.split() for line in (_text(path) or "").splitlines()]
    return {row[0]: int(row[1]) for row in rows if len(row) > 1 and row[1].isdigit()}


def _text(path: Path) -> str | None:
    """A file's text; None if it is missing or not readable, or its process has just ended."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
