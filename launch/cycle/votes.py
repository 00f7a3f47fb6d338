"""Waits until people have voted: at once with what is missing, or for some hours with progress."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from rlhf.errors import Stopped, Waiting

POLL_SECONDS = 2.0


@dataclass(frozen=True, kw_only=True)
class VoteCount:
    """Votes that are there, and that are needed."""

    given: int
    needed: int

    @property
    def missing(self) -> int:
        """Votes that are still needed."""
        return max(self.needed - self.given, 0)


@dataclass(kw_only=True)
class VoteFeed:
    """Files of votes that are imported whenever they have changed."""

    project: Path
    files: Mapping[str, str]
    """Name → format."""
    _seen: dict[str, tuple[int, int]] = field(default_factory=dict)

    def pull(self) -> None:
        """Import the files that have changed since the last call.

        Raises:
            UserError: a file or the project cannot be used.
        """
        from launch.feedback.transfer import import_

        for name, form in self.files.items():
            found = os.stat(Path(name).expanduser())
            if self._seen.get(name) != (state := (found.st_mtime_ns, found.st_size)):
                import_(self.project, str(Path(name).expanduser()), form, None)  # type: ignore[arg-type]
                self._seen[name] = state


def await_votes(count: Callable[[], VoteCount], what: str, project: Path, hours: float | None) -> None:
    """Return when no vote is missing.

    Args:
        what: what the votes are on, for messages.
        hours: how long to wait; None not at all.

    Raises:
        Waiting: votes are missing; also after SIGTERM or Ctrl-C while it waits.
    """
    found = count()
    if found.missing and hours is not None:
        found = _poll(count, found, what, time.monotonic() + hours * 3600)
    if found.missing:
        raise Waiting(
            f"{what}: {found.missing:,} votes are missing, {found.given:,} of {found.needed:,} are in {project}",
            f"let raters vote (rlhf feedback serve {project}), and give the same command again; "
            "with --wait HOURS it waits for them",
        )


def _poll(count: Callable[[], VoteCount], found: VoteCount, what: str, end: float) -> VoteCount:
    from rlhf.recovery.stop import before_the_start
    from rlhf.tracking.console import Console

    try:
        with before_the_start(), Console(sys.stdout).stage(f"Votes, {what}", found.needed) as report:
            while found.missing and time.monotonic() < end:
                report(found.given, {})
                time.sleep(min(POLL_SECONDS, max(end - time.monotonic(), 0.0)))
                found = count()
            report(min(found.given, found.needed), {})
    except (Stopped, KeyboardInterrupt):
        return count()
    return found
