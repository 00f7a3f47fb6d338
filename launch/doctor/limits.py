"""Check of process limits: open files, which every connection of Ray counts towards."""

from __future__ import annotations

import resource
from dataclasses import dataclass

from launch.doctor.findings import Finding, failed, ok, warning

RAISED = 65536
"""Ray raises its soft limit to this, up to the hard limit (``ray/_private/worker.py``)."""
ADVISED = 8192
"""Minimum that Ray recommends."""
LEAST = 1024


@dataclass(frozen=True, kw_only=True)
class OpenFiles:
    """``ulimit -n``: the soft limit, and the hard limit to which a process may raise it."""

    soft: int
    hard: int

    @property
    def usable(self) -> int:
        """The limit to which Ray raises it."""
        return max(self.soft, min(self.hard, RAISED))


def gather() -> OpenFiles:
    """Gather the limits of this process."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    soft, hard = (2**31 if limit == resource.RLIM_INFINITY else limit for limit in limits)
    return OpenFiles(soft=soft, hard=hard)


def check_open_files(facts: OpenFiles) -> Finding:
    """Check that a process may open as many files as Ray recommends."""
    found = f"{facts.soft}, can be raised to {facts.usable}"
    fix = f"ulimit -Hn {RAISED}, or `nofile` in /etc/security/limits.conf; in a container --ulimit nofile={RAISED}"
    if facts.usable < LEAST:
        return failed(found, fix)
    return warning(found, fix) if facts.usable < ADVISED else ok(found)
