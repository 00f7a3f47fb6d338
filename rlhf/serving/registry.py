"""The registry of artefacts: stages from candidate to production, with an audit that only grows.

The audit is the registry's whole content: the state is computed from its entries, so that the two cannot differ. A
command is one entry in one transaction: a killed command has either happened or not, and each may be given again.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from rlhf.config.fields import PART_NAME
from rlhf.errors import UserError
from rlhf.serving.artefact import (
    Artefact,
    ServingStage,
    ServingState,
    artefact_digest,
    hash_model,
    require_unchanged,
)
from rlhf.serving.audit_chain import RegistryEntry, read_chain, seal, to_row
from rlhf.serving.gate_result import GateResult
from rlhf.serving.ledger import Ledger, replay
from rlhf.serving.registry_file import COLUMNS, SUBJECT, create_file, read_rows, require_registry
from rlhf.storage.database import Database
from rlhf.storage.hashing import Progress, no_progress
from rlhf.unicode import encodable

LONGEST_TEXT = 2000
"""Characters of a reason, a name or a key."""
INSERT = f"INSERT INTO audit ({', '.join(COLUMNS)}) VALUES ({', '.join(f':{name}' for name in COLUMNS)})"


class Registry:
    """A registry's file. Threads may share an object; processes may share a file on a local file system.

    ``operation`` is a key of the caller's choice: a command that is repeated with the same key, because its end was not
    seen, changes nothing and returns the artefact of its first time.

    Args:
        clock: Unix time in seconds.

    Raises:
        UserError: the file is no registry.
        RegistryDamaged: its audit was changed by something else.
    """

    def __init__(self, path: Path, clock: Callable[[], float] = time.time) -> None:
        require_registry(path)
        self.path = path
        self.hashing: Progress = no_progress
        """Shows the progress while an artefact's files are hashed."""
        self._database = Database(path, clock, SUBJECT)
        self.ledger()

    @classmethod
    def create(cls, path: Path, clock: Callable[[], float] = time.time) -> Registry:
        """Create an empty registry.

        Raises:
            UserError: there is such a file, or none can be written.
        """
        if not create_file(path):
            raise UserError(f"{path} exists", "a registry is never overwritten", "choose another name")
        return cls(path, clock)

    @classmethod
    def open_or_create(cls, path: Path, clock: Callable[[], float] = time.time) -> Registry:
        """Open a registry; create it if there is no such file."""
        if not path.exists():
            create_file(path)
        return cls(path, clock)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        self._database.close()

    def revision(self) -> int:
        """Number of the newest entry; a query of microseconds, to poll for changes."""
        with self._database.connection() as db:
            return int(db.execute("SELECT coalesce(max(number), 0) FROM audit").fetchone()[0])

    def ledger(self) -> Ledger:
        """The whole content, its chain verified."""
        with self._database.reading() as db:
            return self._read(db)

    def serving(self) -> ServingState:
        """What is served."""
        return self.ledger().serving()

    def audit(self) -> tuple[RegistryEntry, ...]:
        """All entries, oldest first."""
        return self.ledger().entries

    def artefact(self, version: str) -> Artefact:
        """An artefact by its version, or the beginning of its digest."""
        return self.ledger().find(version)

    def verify(self, version: str) -> Artefact:
        """Hash an artefact's files again; returns it if they are what was registered.

        Raises:
            UserError: they are not.
        """
        ledger = self.ledger()
        artefact = ledger.find(version)
        require_unchanged(artefact, ledger.files(artefact.version), self.hashing)
        return artefact

    def register(self, version: str, folder: Path, *, who: str, why: str, operation: str = "") -> Artefact:
        """Add a model folder as a candidate. A withdrawn artefact becomes a candidate again.

        Raises:
            UserError: the folder is no model, or the version or the files have another registration.
        """
        if not PART_NAME.fullmatch(version):
            raise UserError(f"{version!r} is no version", fix="use up to 60 letters, digits, dashes and underscores")
        place = folder.expanduser().resolve()
        if not str(place).isprintable():
            raise UserError(
                f"the name of {str(place)!r} is not printable", "an audit has to show it", "rename the folder"
            )
        files = hash_model(place, self.hashing)
        detail = {"digest": artefact_digest(files), "folder": str(place), "files": [asdict(entry) for entry in files]}

        def decide(ledger: Ledger) -> _Change | None:
            known = ledger.artefacts.get(version)
            _require_same_registration(ledger, version, str(detail["digest"]))
            if known is not None and known.stage is not ServingStage.WITHDRAWN:
                return None
            return _Change(action="register", version=version, stage=ServingStage.CANDIDATE, detail=detail)

        return self._change("register", version, decide, who, why, operation)

    def promote(
        self, version: str, to: ServingStage, gate: GateResult, *, who: str, why: str, operation: str = ""
    ) -> Artefact:
        """Move an artefact one step on. The one that leaves production by it is retired.

        Raises:
            UserError: the step or the gate does not allow it, or the artefact's files have changed.
        """
        artefact = self.verify(version)

        def decide(ledger: Ledger) -> _Change | None:
            found = ledger.find(artefact.version)
            if ledger.has_promoted(found, gate) and found.stage is to:
                return None
            ledger.require_promotable(found, to, gate)
            former = ledger.at(to)
            return _Change(
                action="promote",
                version=found.version,
                stage=to,
                replaces=former.version if former else "",
                gate=gate.digest,
                detail={"baseline": gate.baseline, "summary": list(gate.summary)},
            )

        return self._change("promote", artefact.version, decide, who, why, operation)

    def withdraw(self, version: str, *, who: str, why: str, operation: str = "") -> Artefact:
        """Take an artefact out before production; in shadow or canary it leaves service.

        Raises:
            UserError: it is in production, or was.
        """

        def decide(ledger: Ledger) -> _Change | None:
            found = ledger.find(version)
            if found.stage is ServingStage.WITHDRAWN:
                return None
            if found.stage is ServingStage.PRODUCTION:
                why_not = "production would be left without a model"
                raise UserError(f"{found.version} is in production", why_not, "`rlhf registry rollback`")
            if found.stage is ServingStage.RETIRED:
                raise UserError(f"{found.version} is retired", "it is served no more, and kept for a rollback")
            return _Change(action="withdraw", version=found.version, stage=ServingStage.WITHDRAWN)

        return self._change("withdraw", version, decide, who, why, operation)

    def roll_back(self, *, who: str, why: str, to_digest: str | None = None, operation: str = "") -> Artefact:
        """Return an artefact that was in production, by default the last one; the present one is withdrawn.

        Raises:
            UserError: there is none, or its files have changed.
        """
        ledger = self.ledger()
        if ledger.by_operation(operation) is not None:
            return self._change("rollback", "", lambda _: None, who, why, operation)
        target = ledger.rollback_target(to_digest)
        require_unchanged(target, ledger.files(target.version), self.hashing)

        def decide(now: Ledger) -> _Change | None:
            present = now.at(ServingStage.PRODUCTION)
            if present is not None and present.version == target.version and to_digest is not None:
                return None
            if now.rollback_target(to_digest).version != target.version or present is None:
                what = "the registry changed while the files were verified"
                raise UserError(what, fix="look at `rlhf registry list`, and roll back again if it is still needed")
            return _Change(
                action="rollback",
                version=target.version,
                stage=ServingStage.PRODUCTION,
                replaces=present.version,
            )

        return self._change("rollback", target.version, decide, who, why, operation)

    def _change(
        self,
        action: str,
        version: str,
        decide: Callable[[Ledger], _Change | None],
        who: str,
        why: str,
        operation: str,
    ) -> Artefact:
        """Add the entry that ``decide`` makes of the present state, in one transaction that excludes other writers."""
        # An argument in another encoding than UTF-8 has lone surrogates, which SQLite does not store.
        who, why, operation = map(encodable, (who, why, operation))
        for name, text in (("who", who), ("why", why)):
            if not text.strip():
                raise UserError(f"no {name} is given", "the audit says who did what, and why", f"--{name} TEXT")
        if longest := max((who, why, operation), key=len)[LONGEST_TEXT:]:
            raise UserError(f"a text is {len(longest)} characters too long", f"{LONGEST_TEXT:,} are kept")
        with self._database.writing() as db:
            ledger = self._read(db)
            if earlier := ledger.by_operation(operation):
                if earlier.action != action:
                    what = f"the operation {operation!r} was a {earlier.action}"
                    raise UserError(what, "a key names one command", "give this command a key of its own")
                return ledger.artefacts[earlier.version]
            change = decide(ledger)
            if change is None:
                return ledger.find(version)
            entry = seal(
                {
                    "number": len(ledger.entries) + 1,
                    "time": float(self._database.clock()),
                    "who": who,
                    "why": why,
                    "operation": operation,
                    "previous": ledger.head,
                    **asdict(change),
                }
            )
            db.execute(INSERT, to_row(entry))
            return replay([*ledger.entries, entry]).artefacts[entry.version]

    def _read(self, db: Any) -> Ledger:
        return replay(read_chain(map(dict, read_rows(db)), str(self.path)))


@dataclass(frozen=True, kw_only=True)
class _Change:
    """The fields of an entry that say what changes."""

    action: str
    version: str
    stage: str
    replaces: str = ""
    gate: str = ""
    detail: Mapping[str, Any] = field(default_factory=dict)


def _require_same_registration(ledger: Ledger, version: str, digest: str) -> None:
    known = ledger.artefacts.get(version)
    if known is not None and known.digest != digest:
        why = f"its digest is {known.digest[:12]}, and that of the folder is {digest[:12]}"
        raise UserError(f"{version} is another artefact", why, "choose another version")
    other = next((each for each in ledger.artefacts.values() if each.digest == digest), None)
    if other is not None and other.version != version:
        raise UserError(f"these files are registered as {other.version}", fix=f"go on with {other.version}")
