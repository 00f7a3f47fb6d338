"""The end of a round: the registry gets the candidate, the gate decides, and what passed goes into shadow."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from launch.cycle.steps import RoundSteps, StepOutcome
from rlhf.cycle.journal import CycleStep
from rlhf.cycle.preferences import CANDIDATE, PRODUCTION
from rlhf.errors import UserError
from rlhf.storage.durable import write_atomically
from rlhf.storage.reading import read_json

if TYPE_CHECKING:
    from launch.cycle.plan import CyclePlan
    from rlhf.serving.artefact import Artefact

WHO = "rlhf cycle"
"""In the registry's audit."""
GATE_FOLDER = "gate"
"""Folder of the decisions of all rounds, in the cycle's folder."""
AGAIN = "give `rlhf cycle` with its recipe again"


@dataclass(frozen=True, kw_only=True)
class Contender:
    """The candidate of a round, and what it was compared with."""

    plan: CyclePlan
    round: int
    model: Path
    artefact: str
    """Digest of its files."""
    baseline: str
    """Digest of the production artefact; empty if there was none."""

    @property
    def version(self) -> str:
        """Its name in the registry."""
        return self.plan.version(self.round)

    @property
    def folder(self) -> Path:
        """The round's folder."""
        return self.plan.folder(self.round)


def decide(contender: Contender, steps: RoundSteps, evaluated: str) -> str:
    """Register, gate and promote; returns the gate's outcome.

    Args:
        evaluated: digest of the files of results.
    """
    steps.take(
        CycleStep.REGISTER,
        {"artefact": contender.artefact},
        partial(_register, contender),
        lambda: StepOutcome(result={"version": contender.version, "artefact": contender.artefact}),
    )
    decided = _gate(contender, steps, evaluated)
    steps.take(
        CycleStep.PROMOTE,
        {"gate": decided["digest"]},
        partial(_promote, contender, decided),
        partial(_read_stage, contender),
    )
    return str(decided["outcome"])


def in_production(plan: CyclePlan) -> Artefact | None:
    """The production artefact of now; None if there is none."""
    from rlhf.serving.registry import Registry

    if not plan.registry.exists():
        return None
    with Registry(plan.registry) as registry:
        return registry.serving().production


def found_bad(plan: CyclePlan) -> list[str]:
    """Digests of artefacts that people or the gateway withdrew, or that were rolled back; not those whose place in
    shadow a later round took."""
    from rlhf.serving.artefact import ServingStage
    from rlhf.serving.registry import Registry

    if not plan.registry.exists():
        return []
    with Registry(plan.registry) as registry:
        ledger = registry.ledger()
    last = {name: entry for entry in ledger.entries for name in (entry.version, entry.replaces)}
    withdrawn = [each for each in ledger.artefacts.values() if each.stage is ServingStage.WITHDRAWN]
    return [each.digest for each in withdrawn if last[each.version].who != WHO]


def _register(contender: Contender) -> None:
    from rlhf.serving.registry import Registry

    why = f"round {contender.round} of {contender.plan.root.name}"
    with Registry.open_or_create(contender.plan.registry) as registry:
        registry.register(contender.version, contender.model, who=WHO, why=why)


def _gate(contender: Contender, steps: RoundSteps, evaluated: str) -> Mapping[str, Any]:
    from rlhf.serving.gate_history import question_of
    from rlhf.serving.gate_spec import load_gate

    plan, folder = contender.plan, contender.folder
    gate, decisions = Path(plan.config.gate), plan.root / GATE_FOLDER

    def make() -> None:
        import launch.gate.command

        now = in_production(plan)
        if (now.digest if now else "") != contender.baseline:
            why = "the candidate was compared with what was there before"
            raise UserError("production changed while the round was evaluated", why, f"{AGAIN}: it is compared anew")
        launch.gate.command.run(
            gate,
            [f"candidate={CANDIDATE}", f"production={PRODUCTION}", *_costs(steps)],
            [str(folder / "evaluation" / name) for name in ("report.json", "preferred.jsonl")],
            registry=plan.registry,
            artefact=contender.version,
            out=decisions,
        )
        for name in ("gate.md", "gate.json"):
            write_atomically(folder / name, (decisions / name).read_text(encoding="utf-8"))

    def read() -> StepOutcome:
        content = read_json(folder / "gate.json", dict, AGAIN)
        return StepOutcome(result={key: content[key] for key in ("outcome", "artefact", "digest", "summary")})

    inputs = {"evaluation": evaluated, "artefact": contender.artefact, "question": question_of(load_gate(gate))}
    return steps.take(CycleStep.GATE, inputs, make, read, folder / "gate.json")


def _costs(steps: RoundSteps) -> list[str]:
    """The people's time of the round, as a setting of the gate, which counts the judge's calls itself."""
    own = [entry for entry in steps.journal.entries() if entry.round == steps.round]
    return [f"costs.rater_minutes={sum(entry.cost.get('rater_minutes', 0.0) for entry in own)!r}"]


def _promote(contender: Contender, decided: Mapping[str, Any]) -> None:
    """Put a candidate that passed into shadow, in place of an earlier round's."""
    from rlhf.serving.artefact import ServingStage
    from rlhf.serving.gate_result import read_gate_result
    from rlhf.serving.registry import Registry

    if decided["outcome"] != "pass":
        return
    with Registry(contender.plan.registry) as registry:
        if registry.artefact(contender.version).stage is not ServingStage.CANDIDATE:
            return  # this command was killed after the promotion, or people went on, or took it out
        earlier = {contender.plan.version(number) for number in range(1, contender.round)}
        shadow = registry.serving().shadow
        if shadow is not None and shadow.version in earlier:
            why = f"{contender.version} takes its place in shadow"
            registry.withdraw(shadow.version, who=WHO, why=why)
        result = read_gate_result(contender.folder / "gate.json")
        why = f"the gate of round {contender.round} passed"
        registry.promote(contender.version, ServingStage.SHADOW, result, who=WHO, why=why)


def _read_stage(contender: Contender) -> StepOutcome:
    from rlhf.serving.registry import Registry

    with Registry(contender.plan.registry) as registry:
        return StepOutcome(result={"stage": str(registry.artefact(contender.version).stage)})
