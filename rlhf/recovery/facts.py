"""What can be seen of a process from outside, and how it is read on its own node (Linux ``/proc``, cgroup v2).

Whatever cannot be read is None: a diagnosis with less to go on is better than an error on top of a failure.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

PROC = Path("/proc")
CGROUP = Path("/sys/fs/cgroup")
"""In a container, the container's own group; on a host the root group, which has no files of memory."""


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What is known of one process; None is unknown. Those of a process on a lost node are ``alive=False`` alone."""

    alive: bool
    """Whether there is a process that can still do anything; one that only waits to be buried (Z) cannot."""
    process_state: str | None = None
    """State letter of ``/proc/<pid>/stat``: R runs, S sleeps, D waits for a device, T is stopped, Z is dead."""
    rss_bytes: int | None = None
    """Memory that it holds."""
    host_available_bytes: int | None = None
    """Memory that is still to be had on its node, or in its container where that is less."""
    host_total_bytes: int | None = None
    """Memory of its node, or of its container."""
    oom_kills_since_start: int | None = None
    """Processes that the kernel has killed for want of memory since this one was started."""
    heartbeat_age_seconds: float | None = None
    """Seconds since it last gave a sign of life, which it does at any time, also while it computes."""
    doing: str | None = None
    """What it then said that it was doing."""
    children_alive: bool | None = None
    """Whether all processes that it started are there; None where it has none."""
    exit_text: str = ""
    """What was said of its end or its failure: by Ray, by the error, by the last lines of its log."""


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
    """The facts about a process of this node; those that only others know are handed in.

    Args:
        children: processes that it started, and cannot work without.
        oom_kills_before: ``oom_kills()`` of this node when the process was started.
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
    """Whether there is such a process and it is more than an entry in the kernel's table (states Z and X)."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass  # somebody else's, but there
    return process_state(pid, proc) not in ("Z", "X")


def process_state(pid: int, proc: Path = PROC) -> str | None:
    """Its state letter. The name before it stands in brackets and may hold brackets and spaces itself."""
    words = (_text(proc / str(pid) / "stat") or "").rpartition(")")[2].split()
    return words[0] if words else None


def rss_bytes(pid: int, proc: Path = PROC) -> int | None:
    """Memory that it holds; nothing once it is dead."""
    words = (_text(proc / str(pid) / "statm") or "").split()
    return int(words[1]) * os.sysconf("SC_PAGE_SIZE") if len(words) > 1 else None


def oom_kills(proc: Path = PROC, cgroup: Path = CGROUP) -> int | None:
    """Processes that the kernel has killed so far for want of memory: in this container, or else on this host.

    The host's counter also counts the neighbours' in other containers, hence the container's own where there is one.
    """
    inside = _counters(cgroup / "memory.events").get("oom_kill")
    return inside if inside is not None else _counters(proc / "vmstat").get("oom_kill")


def oom_kills_since(before: int | None, proc: Path = PROC, cgroup: Path = CGROUP) -> int | None:
    """How many more than ``before``, an earlier ``oom_kills()`` of this node; None where either is unknown."""
    kills = oom_kills(proc, cgroup)
    return None if kills is None or before is None else kills - before


def host_memory(proc: Path = PROC, cgroup: Path = CGROUP) -> tuple[int | None, int | None]:
    """Total and available bytes of this host, or of the container where its limit is nearer."""
    kib = _counters(proc / "meminfo")
    total, available = (kib[key] * 1024 if key in kib else None for key in ("MemTotal:", "MemAvailable:"))
    limit, used = (_text(cgroup / name) or "" for name in ("memory.max", "memory.current"))
    if not limit.strip().isdigit() or not used.strip().isdigit():
        return total, available
    cache = _counters(cgroup / "memory.stat").get("inactive_file", 0)  # counted as used, given back when asked for
    left = max(0, int(limit) - int(used) + cache)
    return min(int(limit), total or int(limit)), left if available is None else min(left, available)


def _counters(path: Path) -> dict[str, int]:
    """Lines of a name and a whole number."""
    rows = [line.split() for line in (_text(path) or "").splitlines()]
    return {row[0]: int(row[1]) for row in rows if len(row) > 1 and row[1].isdigit()}


def _text(path: Path) -> str | None:
    """A file's text, or None where it is missing, is not ours to read, or its process has just gone."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
