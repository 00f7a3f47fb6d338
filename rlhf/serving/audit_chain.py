"""The registry's audit: entries that each hold the hash of the one before, so that an edit is noticed."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from rlhf.errors import MachineryError
from rlhf.storage.canonical import canonical_digest

FIRST = "0" * 64
"""What the first entry holds as the hash of the one before."""


class RegistryDamaged(MachineryError):
    """The audit is not what the registry wrote."""


@dataclass(frozen=True, kw_only=True)
class RegistryEntry:
    """One change of the registry. The entries in their order are its whole content."""

    number: int
    """Counts from 1 without gaps."""
    time: float
    """Unix time in seconds."""
    who: str
    action: str
    """``register``, ``promote``, ``withdraw`` or ``rollback``."""
    version: str
    """The artefact that changes its stage."""
    stage: str
    """Its stage afterwards."""
    replaces: str
    """Version that leaves production by it; empty if none."""
    why: str
    gate: str
    """Digest of the gate's result that allowed a promotion; empty for other actions."""
    operation: str
    """Key of the command, if it was given one: a repeated command with this key changes nothing."""
    detail: Mapping[str, Any]
    """Of a registration: folder, digest and files. Of a promotion: the gate's baseline and a line for each KPI."""
    previous: str
    """Hash of the entry before."""
    hash: str
    """SHA-256 of all other fields."""


def seal(fields: Mapping[str, Any]) -> RegistryEntry:
    """Make an entry of its other fields, with its hash."""
    return RegistryEntry(**fields, hash=canonical_digest(dict(fields)))


def to_row(entry: RegistryEntry) -> dict[str, Any]:
    """An entry as values of SQLite's columns."""
    return {**asdict(entry), "detail": json.dumps(entry.detail, sort_keys=True)}


def read_chain(rows: Iterable[Mapping[str, Any]], place: str) -> tuple[RegistryEntry, ...]:
    """Read entries and verify their chain.

    Args:
        place: the registry's file, for messages.

    Raises:
        RegistryDamaged: an entry was edited, removed, inserted or moved.
    """
    entries: list[RegistryEntry] = []
    previous = FIRST
    for number, row in enumerate(rows, start=1):
        try:
            entry = RegistryEntry(**{**row, "detail": json.loads(row["detail"])})
            fields = {name: value for name, value in asdict(entry).items() if name != "hash"}
            is_whole = canonical_digest(fields) == entry.hash
        except (TypeError, ValueError, RecursionError):
            is_whole = False
        if not is_whole or entry.number != number or entry.previous != previous:
            raise RegistryDamaged(
                f"the registry {place} was changed by something else than rlhf: audit entry {number} does not fit the "
                "chain of hashes; restore a copy of the file, and find out who can write to it"
            )
        entries.append(entry)
        previous = entry.hash
    return tuple(entries)
