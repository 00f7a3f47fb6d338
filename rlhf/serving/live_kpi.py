"""Key performance indicators of a canary: fractions over a sliding window, and the one that broke its limit."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import StrEnum

from rlhf.config.fields import BelowOne, Count, Positive, Seconds, section

SLICES = 60
"""Parts of a window; a fraction is over the last window, to 1/60 of it."""


class Kpi(StrEnum):
    """What is counted. Each is a fraction of bad events, from 0 to 1."""

    ERRORS = "errors"
    """Requests without an answer: no connection, a timeout, a status other than 200, a malformed or broken answer."""
    SLOW = "slow"
    """Requests whose first byte took longer than ``slow_seconds``. A limit of 0.05 on it bounds the 95th percentile."""
    THUMBS_DOWN = "thumbs_down"
    """Thumbs that are down."""
    LOW_SCORES = "low_scores"
    """Scored answers below ``scorer.minimum``."""


@section
class KpiRule:
    """A limit on one KPI of the canary."""

    kpi: Kpi
    """``errors``, ``slow``, ``thumbs_down`` or ``low_scores``."""
    limit: BelowOne
    """Largest fraction of bad events; more withdraws the canary."""
    window_seconds: Seconds = 300.0
    """Events of the last so many seconds count."""
    minimum: Count = 20
    """Events in the window before which the rule does not apply."""
    slow_seconds: Positive = 5.0
    """For ``slow``: seconds to the first byte."""


@dataclass(frozen=True, kw_only=True)
class Breach:
    """A broken limit, with its figures."""

    rule: KpiRule
    bad: int
    events: int

    def __str__(self) -> str:
        """KPI and figures, as the registry's audit shows them."""
        return (
            f"{self.rule.kpi}: {self.bad} of {self.events} in {self.rule.window_seconds:g} s "
            f"({self.bad / self.events:.1%}), limit {self.rule.limit:.1%}"
        )


class KpiWindow:
    """The events of one rule within its window, counted in slices of time, so that memory does not grow with them."""

    def __init__(self, rule: KpiRule, clock: Callable[[], float]) -> None:
        self.rule, self._clock = rule, clock
        self._slices: deque[list[int]] = deque()
        """[slice number, events, bad events] of every slice with events, oldest first."""

    def record(self, is_bad: bool) -> None:
        """Count an event."""
        now = self._drop_old()
        if not self._slices or self._slices[-1][0] != now:
            self._slices.append([now, 0, 0])
        self._slices[-1][1] += 1
        self._slices[-1][2] += is_bad

    def breach(self) -> Breach | None:
        """The breach, if the limit is broken."""
        self._drop_old()
        events, bad = sum(each[1] for each in self._slices), sum(each[2] for each in self._slices)
        if events < self.rule.minimum or bad <= self.rule.limit * events:
            return None
        return Breach(rule=self.rule, bad=bad, events=events)

    def _drop_old(self) -> int:
        """Forget slices that left the window; returns the current slice's number."""
        now = int(self._clock() / self.rule.window_seconds * SLICES)
        while self._slices and self._slices[0][0] <= now - SLICES:
            self._slices.popleft()
        return now


class CanaryWatch:
    """All rules of one canary. A new canary gets a new watch."""

    def __init__(self, rules: Iterable[KpiRule], clock: Callable[[], float]) -> None:
        self._windows = [KpiWindow(rule, clock) for rule in rules]

    def record(self, kpi: Kpi, is_bad: bool) -> None:
        """Count an event of ``kpi`` in all rules about it."""
        for window in self._windows:
            if window.rule.kpi is kpi:
                window.record(is_bad)

    def record_first_byte(self, seconds: float | None) -> None:
        """Count a request for the rules about slowness; None: no byte came before the request was given up."""
        for window in self._windows:
            if window.rule.kpi is Kpi.SLOW:
                window.record(seconds is None or seconds > window.rule.slow_seconds)

    def breach(self) -> Breach | None:
        """The first broken rule, in the order of the file."""
        return next((found for window in self._windows if (found := window.breach())), None)
