"""A gate's result as the registry reads it: for which step and which files, with a digest over the whole decision."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from rlhf.errors import UserError
from rlhf.storage.canonical import canonical_digest
from rlhf.storage.reading import read_json

FORMAT = 1
"""Version of the file; incremented if readers of the old format would misread the new one."""
_FIX = "give the gate.json that `rlhf gate --out` wrote, unchanged, or run the gate again"


class GateOutcome(StrEnum):
    """What a gate, or one of its KPIs, decided."""

    PASS = "pass"
    FAIL = "fail"
    INCONCLUSIVE = "inconclusive"


@dataclass(frozen=True, kw_only=True)
class GateResult:
    """What the registry needs to know of a decision."""

    outcome: GateOutcome
    for_stage: str
    """The step that the gate guards: shadow, canary or production."""
    artefact: str
    """Digest of the artefact that was measured; empty if it was not named."""
    baseline: str = ""
    """Digest of the production artefact that it was compared with; empty if there was none."""
    is_compared: bool = False
    """Whether a KPI is compared with production."""
    digest: str
    """SHA-256 of the whole decision."""
    summary: tuple[str, ...] = ()
    """One line for each KPI, for the audit and the model card."""


def seal_decision(body: Mapping[str, Any]) -> dict[str, Any]:
    """A decision as the content of its file, with its digest."""
    return {**body, "digest": canonical_digest(dict(body))}


def read_gate_result(path: Path) -> GateResult:
    """Read ``gate.json`` and verify its digest.

    Raises:
        UserError: it is no gate's result, of another version, or was changed.
    """
    content = read_json(path, dict, _FIX)
    body = {key: value for key, value in content.items() if key != "digest"}
    try:
        is_whole = content.get("digest") == canonical_digest(body)
    except (ValueError, RecursionError):
        is_whole = False
    if not is_whole:
        raise UserError(f"{path} is no whole result of a gate", "its content does not fit its digest", _FIX)
    if body.get("format") != FORMAT:
        raise UserError(f"{path} has format {body.get('format')!r}, and this rlhf reads {FORMAT}", fix="update rlhf")
    try:
        return to_result(content)
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path} is no result of a gate", f"{type(error).__name__}: {error}", _FIX) from error


def to_result(content: Mapping[str, Any]) -> GateResult:
    """The registry's part of a sealed decision."""
    return GateResult(
        outcome=GateOutcome(content["outcome"]),
        for_stage=str(content["for"]),
        artefact=str(content["artefact"]),
        baseline=str(content["baseline"]),
        is_compared=bool(content["compared"]),
        digest=str(content["digest"]),
        summary=tuple(map(str, content["summary"])),
    )
