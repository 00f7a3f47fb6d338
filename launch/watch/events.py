"""Folds repeated events, so that losses, restarts and warnings are not lost among routine ones."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from launch.watch.describe import TROUBLE, describe_event, local_time
from launch.watch.follow import Row

ROUTINE = frozenset({"checkpoint", "end_tokens", "examined"})
"""Kinds of events that every healthy run has; only the last one of each kind is shown, with their number."""


@dataclass(frozen=True, kw_only=True)
class EventGroup:
    """Events that are shown as one."""

    last: Row
    first: Row
    count: int

    @property
    def kind(self) -> str:
        """The kind of the events."""
        return str(self.last.get("kind"))

    @property
    def is_routine(self) -> bool:
        """Whether a healthy run has such events."""
        return self.kind in ROUTINE

    def describe(self) -> str:
        """One line: the last event and, if there are several, their number."""
        if self.count == 1:
            return describe_event(self.last)
        since = local_time(self.first)
        return f"{describe_event(self.last)} (×{self.count}{f' since {since}' if since else ''})"


def fold_events(events: Iterable[Row]) -> list[EventGroup]:
    """Group events by the time of the last one of each group.

    Routine events are grouped by kind. Equal warnings are grouped if no other event that matters is between them.
    Failures are never grouped.
    """
    groups: list[EventGroup] = []
    for event in events:
        index = _find_group(groups, event)
        same = groups.pop(index) if index is not None else None
        first, count = (same.first, same.count + 1) if same else (event, 1)
        groups.append(EventGroup(last=event, first=first, count=count))
    return groups


def _find_group(groups: Sequence[EventGroup], event: Row) -> int | None:
    """Index of the group that an event belongs to."""
    kind = str(event.get("kind"))
    if kind in TROUBLE:
        return None
    candidates = [i for i, group in enumerate(groups) if group.is_routine == (kind in ROUTINE)]
    if kind not in ROUTINE:
        candidates = candidates[-1:]
    return next((i for i in candidates if _key(groups[i].last) == _key(event)), None)


def _key(event: Row) -> tuple[str, ...]:
    kind = str(event.get("kind"))
    return (kind,) if kind in ROUTINE else (kind, *(str(event.get(name)) for name in ("alert", "member", "metric")))


def fit_events(groups: Sequence[EventGroup], count: int) -> list[EventGroup]:
    """At most ``count`` groups, the newest; routine ones are left out first."""
    excess = max(0, len(groups) - count)
    left_out = [i for i, group in enumerate(groups) if group.is_routine][:excess]
    kept = [group for i, group in enumerate(groups) if i not in left_out]
    return kept[max(0, len(kept) - count) :]
