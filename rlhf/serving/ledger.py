"""The registry's content, computed from its audit entries: which artefact is in which stage, and what may follow."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from rlhf.checkpoints.manifest import FileEntry, file_entries
from rlhf.errors import UserError
from rlhf.serving.artefact import STEPS, Artefact, ServingStage, ServingState
from rlhf.serving.audit_chain import FIRST, RegistryEntry
from rlhf.serving.gate_result import GateOutcome, GateResult

SERVED = (ServingStage.SHADOW, ServingStage.CANARY, ServingStage.PRODUCTION)
"""Stages that hold one artefact at most."""


@dataclass(frozen=True, kw_only=True)
class Ledger:
    """State after all entries."""

    entries: tuple[RegistryEntry, ...]
    artefacts: dict[str, Artefact]
    """By version, in the order of registration."""

    @property
    def head(self) -> str:
        """Hash of the newest entry."""
        return self.entries[-1].hash if self.entries else FIRST

    def at(self, stage: ServingStage) -> Artefact | None:
        """The artefact in one of the stages that hold one."""
        return next((each for each in self.artefacts.values() if each.stage is stage), None)

    def serving(self) -> ServingState:
        """What is served."""
        return ServingState(
            production=self.at(ServingStage.PRODUCTION),
            canary=self.at(ServingStage.CANARY),
            shadow=self.at(ServingStage.SHADOW),
            revision=len(self.entries),
        )

    def find(self, version: str) -> Artefact:
        """The artefact of a version, or of the beginning of a digest (8 digits or more).

        Raises:
            UserError: there is none, or several.
        """
        if version in self.artefacts:
            return self.artefacts[version]
        by_digest = [each for each in self.artefacts.values() if len(version) >= 8 and each.digest.startswith(version)]
        if len(by_digest) == 1:
            return by_digest[0]
        known = ", ".join(self.artefacts) or "none"
        raise UserError(f"the registry has no artefact {version!r}", f"registered are: {known}", "name one of them")

    def files(self, version: str) -> tuple[FileEntry, ...]:
        """The registered files of an artefact."""
        entries = [each for each in self.entries if each.version == version and each.action == "register"]
        return file_entries(entries[-1].detail["files"])

    def by_operation(self, operation: str) -> RegistryEntry | None:
        """The entry of a command that was given this key."""
        return next((each for each in self.entries if operation and each.operation == operation), None)

    def has_promoted(self, artefact: Artefact, gate: GateResult) -> bool:
        """Whether the newest entry of the artefact is its promotion by this gate."""
        last = [each for each in self.entries if each.version == artefact.version][-1]
        return last.action == "promote" and last.gate == gate.digest and last.stage == gate.for_stage

    def require_promotable(self, artefact: Artefact, to: ServingStage, gate: GateResult) -> None:
        """Check that an artefact may go one step on.

        Raises:
            UserError: a step would be skipped, the stage is taken, or the gate is not one of this step, has not passed,
                measured other files, was compared with another production artefact, or has promoted before.
        """
        _require_next_step(artefact, to)
        _require_gate(artefact, to, gate)
        production = self.at(ServingStage.PRODUCTION)
        present = production.digest if production else ""
        if gate.baseline != present and (gate.baseline or gate.is_compared):
            now = f"it is {production.version}, {present[:12]}" if production else "there is none"
            raise UserError(
                f"the gate compared {artefact.version} with {gate.baseline[:12] or 'an unnamed artefact'}, "
                "which is not in production",
                now,
                "measure against the present production artefact, and run the gate again",
            )
        if any(each.gate == gate.digest for each in self.entries):
            raise UserError(
                f"the gate's result {gate.digest[:12]} has promoted before",
                "one measurement allows one promotion",
                "measure again, and run the gate on the new data",
            )
        holder = self.at(to) if to is not ServingStage.PRODUCTION else None
        if holder is not None:
            fix = f"promote {holder.version} further, or `rlhf registry withdraw {holder.version}` first"
            raise UserError(f"{holder.version} is in {to}", f"{to} holds one artefact", fix)

    def rollback_target(self, to_digest: str | None) -> Artefact:
        """The artefact that a rollback returns to production.

        Args:
            to_digest: its digest, or the beginning of it; None for the one that was in production before the present.

        Raises:
            UserError: nothing is in production, or no such artefact has been.
        """
        been = [each.version for each in self.entries if each.stage == ServingStage.PRODUCTION]
        present = self.at(ServingStage.PRODUCTION)
        if present is None:
            raise UserError("nothing is in production", "there is nothing to roll back from", "promote an artefact")
        if to_digest is None:
            former = [version for version in been if self.artefacts[version].stage is ServingStage.RETIRED]
            if not former:
                why = "it is the first one, or all earlier ones were rolled back"
                raise UserError(f"no artefact was in production before {present.version}", why, "give --to a digest")
            return self.artefacts[former[-1]]
        target = self.find(to_digest)
        if target.version not in been:
            why = "a rollback returns to what has been in production; others are promoted through their gates"
            raise UserError(f"{target.version} has never been in production", why, "name an artefact that has")
        return target


def replay(entries: Iterable[RegistryEntry]) -> Ledger:
    """Compute the state after entries."""
    kept = tuple(entries)
    artefacts: dict[str, Artefact] = {}
    for entry in kept:
        stage = ServingStage(entry.stage)
        if entry.replaces:
            left = ServingStage.WITHDRAWN if entry.action == "rollback" else ServingStage.RETIRED
            artefacts[entry.replaces] = replace(artefacts[entry.replaces], stage=left)
        if entry.action == "register":
            artefacts[entry.version] = Artefact(
                version=entry.version,
                digest=str(entry.detail["digest"]),
                folder=Path(str(entry.detail["folder"])),
                stage=stage,
                registered=entry.time,
            )
        else:
            artefacts[entry.version] = replace(artefacts[entry.version], stage=stage)
    return Ledger(entries=kept, artefacts=artefacts)


def _require_next_step(artefact: Artefact, to: ServingStage) -> None:
    if to not in SERVED:
        raise UserError(f"nothing is promoted to {to}", fix=f"the steps are {', '.join(STEPS[1:])}")
    if artefact.stage not in STEPS[:-1]:
        what = f"{artefact.version} is {artefact.stage}"
        raise UserError(what, "only what is on its way to production is promoted", "register it again as a candidate")
    following = STEPS[STEPS.index(artefact.stage) + 1]
    if to is not following:
        raise UserError(
            f"{artefact.version} is in {artefact.stage} and cannot go to {to}",
            "no step is skipped or repeated",
            f"promote it to {following}, with a passed gate for that step",
        )


def _require_gate(artefact: Artefact, to: ServingStage, gate: GateResult) -> None:
    fix = f"run `rlhf gate` with `for: {to}` on measurements of this artefact"
    if gate.for_stage != to:
        raise UserError(f"the gate is for {gate.for_stage} and not for {to}", "each step has its own gate", fix)
    if gate.outcome is not GateOutcome.PASS:
        why = "only a passed gate promotes"
        raise UserError(f"the gate for {to} is {gate.outcome}", why, "collect more data, or improve the model")
    if gate.artefact != artefact.digest:
        measured = gate.artefact[:12] or "no artefact"
        raise UserError(
            f"the gate measured {measured} and not {artefact.version} ({artefact.digest[:12]})",
            "a promotion is of exactly those files that were measured",
            fix,
        )
