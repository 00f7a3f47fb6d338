"""Limits of a process: open files, of which every connection of Ray is one."""

from __future__ import annotations

import resource
from dataclasses import dataclass

from launch.doctor.findings import Finding, failed, ok, warning

RAISED = 65536
"""Ray raises its own limit to this, as far as the hard limit lets it (``ray/_private/worker.py``)."""
ADVISED = 8192
"""What Ray advises at least."""
LEAST = 1024


@dataclass(frozen=True, kw_only=True)
class OpenFiles:
    """``ulimit -n``: what is in force, and how far a process may raise it by itself."""

    soft: int
    hard: int

    @property
    def usable(self) -> int:
        """What Ray makes of it."""
        return max(self.soft, min(self.hard, RAISED))


def gather() -> OpenFiles:
    """The limits of this process."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    soft, hard = (2**31 if limit == resource.RLIM_INFINITY else limit for limit in limits)
    return OpenFiles(soft=soft, hard=hard)


def check_open_files(facts: OpenFiles) -> Finding:
    """A process may open as many files as Ray advises."""
    found = f"{facts.soft}, can be raised to {facts.usable}"
    fix = f"ulimit -Hn {RAISED}, or `nofile` in /etc/security/limits.conf; in a container --ulimit nofile={RAISED}"
    if facts.usable < LEAST:
        return failed(found, fix)
    return warning(found, fix) if facts.usable < ADVISED else ok(found)
