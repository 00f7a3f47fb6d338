"""Who answered when: the gateway's log and the registry's audit as series over time, and the automatic return."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from rlhf.feedback.records import Thumb
from rlhf.types import Float64

Row = Mapping[str, Any]
WHO = "gateway"
"""Who withdraws a canary by itself, in the registry's audit."""


@dataclass(frozen=True, kw_only=True)
class Traffic:
    """Answers and thumbs over time. Times are in seconds since the first request.

    Shapes: B bins.
    """

    edges: Float64
    """(B + 1,)"""
    answers: Mapping[str, Float64]
    """(B,) answers that users got, by version."""
    thumbs: Mapping[str, tuple[Float64, Float64]]
    """By version: (B,) thumbs, and (B,) those that were down."""


@dataclass(frozen=True, kw_only=True)
class CanaryReturn:
    """The automatic return of a canary. Times are in seconds."""

    version: str
    why: str
    start: float
    """First answer of the canary, since the first request of all."""
    end: float
    """Entry in the registry, since the first request of all."""
    answers: int
    """Answers of the canary that users got."""
    answers_after: int
    """Of them, those after the entry."""

    @property
    def seconds(self) -> float:
        """From the first answer to the return."""
        return self.end - self.start


def measure_traffic(rows: Sequence[Row], thumbs: Sequence[Thumb], bins: int) -> Traffic:
    """Count answers and thumbs in ``bins`` bins of equal duration.

    Args:
        rows: of the gateway's log, at least one of which was answered.
        thumbs: those before the first request are in no bin: they are of an earlier act.
    """
    answered = [row for row in rows if row["outcome"] == "answered"]
    first, last = min(row["time"] for row in answered), max(row["time"] for row in answered)
    end = max([last, *(thumb.time for thumb in thumbs)]) - first
    edges = np.linspace(0.0, max(end, 1e-3), bins + 1)

    def count(times: Sequence[float]) -> Float64:
        return np.histogram(np.array(times, dtype=np.float64) - first, edges)[0].astype(np.float64)

    versions = sorted({str(row["version"]) for row in answered})
    return Traffic(
        edges=edges,
        answers={v: count([row["time"] for row in answered if row["version"] == v]) for v in versions},
        thumbs={
            v: (
                count([each.time for each in thumbs if each.answer.policy == v]),
                count([each.time for each in thumbs if each.answer.policy == v and not each.is_good]),
            )
            for v in versions
        },
    )


def find_return(rows: Sequence[Row], audit: Sequence[Row], version: str) -> CanaryReturn | None:
    """The automatic return of a version; None if the gateway has not withdrawn it after an answer."""
    entries = [e for e in audit if (e["action"], e["version"], e["who"]) == ("withdraw", version, WHO)]
    answered = [row for row in rows if row["outcome"] == "answered"]
    canary = [row["time"] for row in answered if (row["stage"], row["version"]) == ("canary", version)]
    if not entries or not canary:
        return None
    first, end = min(row["time"] for row in answered), float(entries[-1]["time"])
    return CanaryReturn(
        version=version,
        why=str(entries[-1]["why"]),
        start=min(canary) - first,
        end=end - first,
        answers=len(canary),
        answers_after=sum(time > end for time in canary),
    )
