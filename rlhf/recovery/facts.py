"""Reads facts about a process and its node: with psutil, and from the kernel's files for cgroup limits and OOM kills.

A value that cannot be read is None: a less certain diagnosis is better than a second error.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

VMSTAT = Path("/proc/vmstat")
SHARED_MEMORY = Path("/dev/shm")
CGROUP = Path("/sys/fs/cgroup")
"""In a container, the container's group; on a host the root group, which has no memory files."""
LETTERS = {
    psutil.STATUS_RUNNING: "R",
    psutil.STATUS_SLEEPING: "S",
    psutil.STATUS_IDLE: "I",
    psutil.STATUS_DISK_SLEEP: "D",
    psutil.STATUS_STOPPED: "T",
    psutil.STATUS_TRACING_STOP: "t",
    psutil.STATUS_ZOMBIE: "Z",
    psutil.STATUS_DEAD: "X",
}
"""psutil's status of a process → the kernel's letter, which ``ps`` and ``events.jsonl`` show."""


STOPPED = ("T", "t")
"""States of a process that is stopped."""


@dataclass(frozen=True, kw_only=True)
class Facts:
    """Facts about one process; None is unknown. A process on a failed node has ``alive=False`` only."""

    alive: bool
    """Whether the process exists and is not a zombie (Z)."""
    process_state: str | None = None
    """The kernel's letter: R runs, S sleeps, D waits for a device, T and t are stopped, Z is dead."""
    rss_bytes: int | None = None
    """Resident memory of the process."""
    host_available_bytes: int | None = None
    """Available memory of its node, or of its container if that is less."""
    host_total_bytes: int | None = None
    """Memory of its node, or of its container."""
    oom_kills_since_start: int | None = None
    """Processes that the kernel's OOM killer has killed since this one started."""
    shared_memory: tuple[int, int] | None = None
    """Free and all bytes of its node's ``/dev/shm``, now that it may have ended."""
    heartbeat_age_seconds: float | None = None
    """Seconds since its last heartbeat; a healthy process answers one even while it computes."""
    doing: str | None = None
    """Its activity at the last heartbeat."""
    children_alive: bool | None = None
    """Whether all processes that it started are alive; None if it has none."""
    exit_text: str = ""
    """Messages about its end or failure: from Ray, the error, and the tail of its log."""

    @property
    def is_stopped(self) -> bool:
        """Whether it is stopped, by a signal or by a debugger."""
        return self.process_state in STOPPED


def read_facts(
    pid: int,
    *,
    children: Sequence[int] = (),
    oom_kills_before: int | None = None,
    heartbeat_age_seconds: float | None = None,
    doing: str | None = None,
    exit_text: str = "",
    cgroup: Path = CGROUP,
) -> Facts:
    """Read the facts about a process of this node.

    Args:
        children: processes that it started and needs.
        oom_kills_before: ``oom_kills()`` of this node when the process started.
    """
    total, available = host_memory(cgroup)
    return Facts(
        alive=is_alive(pid),
        process_state=process_state(pid),
        rss_bytes=rss_bytes(pid),
        host_available_bytes=available,
        host_total_bytes=total,
        oom_kills_since_start=oom_kills_since(oom_kills_before, cgroup),
        shared_memory=shared_memory(),
        heartbeat_age_seconds=heartbeat_age_seconds,
        doing=doing,
        children_alive=all(map(is_alive, children)) if children else None,
        exit_text=exit_text,
    )


def is_alive(pid: int) -> bool:
    """Whether the process exists, and is more than an entry in the kernel's table (states Z and X)."""
    return psutil.pid_exists(pid) and process_state(pid) not in ("Z", "X")


def process_state(pid: int) -> str | None:
    """State letter of a process; None if it does not exist."""
    try:
        return LETTERS.get(psutil.Process(pid).status())
    except psutil.Error:
        return None


def rss_bytes(pid: int) -> int | None:
    """Resident memory of a process; None once it is dead."""
    try:
        return int(psutil.Process(pid).memory_info().rss)
    except psutil.Error:
        return None


def oom_kills(cgroup: Path = CGROUP, vmstat: Path = VMSTAT) -> int | None:
    """Number of processes that the OOM killer has killed so far: in this container, or else on this host.

    The container's counter is preferred, because the host's includes other containers.
    """
    inside = _counters(cgroup / "memory.events").get("oom_kill")
    return inside if inside is not None else _counters(vmstat).get("oom_kill")


def oom_kills_since(before: int | None, cgroup: Path = CGROUP) -> int | None:
    """Increase over ``before``, an earlier ``oom_kills()`` of this node; None if either is unknown."""
    kills = oom_kills(cgroup)
    return None if kills is None or before is None else kills - before


def host_memory(cgroup: Path = CGROUP) -> tuple[int, int]:
    """Total and available bytes of this host, or of the container if its limit is lower."""
    host, (limit, left) = psutil.virtual_memory(), cgroup_memory(cgroup)
    return min(host.total, limit or host.total), host.available if left is None else min(host.available, left)


def shared_memory(folder: Path = SHARED_MEMORY) -> tuple[int, int] | None:
    """Free and all bytes of the shared memory; None if there is none."""
    try:
        found = shutil.disk_usage(folder)
    except OSError:
        return None
    return found.free, found.total


def cgroup_memory(group: Path) -> tuple[int | None, int | None]:
    """Limit of a control group (version 2), and the bytes left under it; None without a limit."""
    limit, used = (_text(group / name) or "" for name in ("memory.max", "memory.current"))
    if not limit.strip().isdigit():
        return None, None
    if not used.strip().isdigit():
        return int(limit), None
    cache = _counters(group / "memory.stat").get("inactive_file", 0)  # counted as used, but reclaimable
    return int(limit), max(0, int(limit) - int(used) + cache)


def _counters(path: Path) -> dict[str, int]:
    """Read a file whose lines are a name and a whole number."""
    rows = [line.split() for line in (_text(path) or "").splitlines()]
    return {row[0]: int(row[1]) for row in rows if len(row) > 1 and row[1].isdigit()}


def _text(path: Path) -> str | None:
    """A file's text; None if it is missing or not readable."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
