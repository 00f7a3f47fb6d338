"""What the handlers of one server share."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from fastapi import Request

from launch.feedback.limits import Rate, RateLimit
from launch.feedback.project_progress import ProjectProgress
from launch.feedback.session_time import SessionTimes
from launch.feedback.status_tables import StatusSource
from launch.feedback.tickets import Tickets
from rlhf.feedback.access import derive_key
from rlhf.feedback.store import Store

RATER_RATE = Rate(burst=100, per_second=20)
"""Of one rater: more than a person needs, and too little to keep a server busy."""


@dataclass(frozen=True, kw_only=True)
class Site:
    """A project that is being served."""

    store: Store
    tickets: Tickets
    csrf_key: bytes
    status_sources: Sequence[StatusSource] = ()
    """Further tables of the status page."""
    visits: RateLimit = field(default_factory=lambda: RateLimit(RATER_RATE, time.monotonic))
    times: SessionTimes = field(default_factory=SessionTimes)
    progress: ProjectProgress = field(default_factory=ProjectProgress)
    clock: Callable[[], float] = time.time
    """Unix time in seconds."""


def make_site(store: Store, status_sources: Sequence[StatusSource] = ()) -> Site:
    """The site of an open project; its keys are derived from the project's secret."""
    tickets, csrf_key = Tickets(derive_key(store, "tickets")), derive_key(store, "forms")
    return Site(store=store, tickets=tickets, csrf_key=csrf_key, status_sources=status_sources)


def site_of(request: Request) -> Site:
    """The site that serves a request."""
    site: Site = request.app.state.site
    return site
