"""Events by version and KPI, as ``rlhf gate`` reads them: live traffic decides the next promotion."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from rlhf.serving.live_kpi import Kpi


@dataclass(frozen=True, kw_only=True)
class CountRow:
    """Events of one version and KPI."""

    digest: str
    kpi: Kpi
    events: int
    bad: int


class LiveCounts:
    """Events since the gateway started, or since its ``state`` began, by the digest of the artefact that answered."""

    def __init__(self) -> None:
        self._events: Counter[tuple[str, Kpi]] = Counter()
        self._bad: Counter[tuple[str, Kpi]] = Counter()

    def record(self, digest: str, kpi: Kpi, is_bad: bool) -> None:
        """Count an event."""
        self._events[digest, kpi] += 1
        self._bad[digest, kpi] += is_bad

    def rows(self) -> list[CountRow]:
        """All counts."""
        return [
            CountRow(digest=digest, kpi=kpi, events=events, bad=self._bad[digest, kpi])
            for (digest, kpi), events in self._events.items()
        ]

    def add(self, rows: Iterable[CountRow]) -> None:
        """Add the counts of an earlier time."""
        for row in rows:
            self._events[row.digest, row.kpi] += row.events
            self._bad[row.digest, row.kpi] += row.bad

    def compared(self, candidate: str, production: str) -> dict[str, Any]:
        """Counts of both artefacts, of the KPIs that have events of both; a success is a bad event: lower is better."""
        shared = [kpi for kpi in Kpi if self._events[candidate, kpi] and self._events[production, kpi]]
        sides = {"candidate": candidate, "production": production}
        counts = {str(kpi): {side: self._counts(digest, kpi) for side, digest in sides.items()} for kpi in shared}
        return {"counts": counts, "artefact": candidate, "baseline": production}

    def _counts(self, digest: str, kpi: Kpi) -> dict[str, int]:
        return {"successes": self._bad[digest, kpi], "n": self._events[digest, kpi]}
