"""The outcome of a gate as a file: what was asked, of which data, for which artefact, with a digest over all of it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class GateOutcome(StrEnum):
    """What a gate decided."""

    PASS = "pass"
    FAIL = "fail"
    INCONCLUSIVE = "inconclusive"


@dataclass(frozen=True, kw_only=True)
class GateResult:
    """What the registry reads of a gate's result."""

    outcome: GateOutcome
    for_stage: str
    """The stage that the gate guards: shadow, canary or production."""
    artefact: str
    """Digest of the artefact that was measured."""
    baseline: str = ""
    """Digest of the production artefact that it was compared with; empty if no metric needs one."""
    digest: str
    """SHA-256 of the whole result."""
