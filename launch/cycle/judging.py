"""The second half of a round: candidate and production answer, people compare, the gate decides, the registry knows."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from launch.cycle import work
from launch.cycle.deciding import AGAIN, Contender, decide, in_production
from launch.cycle.round import Round, copy_project, read_votes
from launch.cycle.steps import RoundSteps, StepOutcome
from launch.cycle.votes import VoteCount, await_votes
from rlhf.cycle.journal import CycleStep, last_end
from rlhf.cycle.preferences import (
    CANDIDATE,
    PREFERRED,
    PRODUCTION,
    metric_kpis,
    pairs_to_compare,
    preference_kpi,
    preference_rows,
)
from rlhf.storage.canonical import canonical_digest
from rlhf.storage.durable import write_atomically, written_folder
from rlhf.storage.hashing import file_sha256
from rlhf.storage.jsonl import json_safe, read_lines, to_line
from rlhf.storage.reading import read_json

if TYPE_CHECKING:
    from rlhf.arms.answers import Arms
    from rlhf.arms.spec import ComparisonConfig


@dataclass(frozen=True, kw_only=True)
class Opponent:
    """What a candidate is compared with: production, or the cycle's first model while nothing is in production."""

    model: Path
    digest: str
    """Of the production artefact; empty if there is none."""


def judge_candidate(round: Round, steps: RoundSteps, candidate: Path) -> str:
    """Bring a candidate to its gate, and into shadow if it passes; returns the gate's outcome."""
    digest = _digest_of(candidate)
    opponent = _opponent(round, steps)
    answers = _answer(round, steps, candidate, digest, opponent)
    compared = _compare(round, steps, answers)
    evaluated = _evaluate(round, steps, answers, compared)
    contender = Contender(
        plan=round.plan, round=round.number, model=candidate, artefact=digest, baseline=opponent.digest
    )
    return decide(contender, steps, evaluated)


def _digest_of(model: Path) -> str:
    """Digest of a stage's model by the hashes that the stage recorded."""
    from rlhf.serving.artefact import artefact_digest
    from rlhf.tracking.run_folder import RunFolder

    return artefact_digest(RunFolder(model.parent.parent, model.parent.name).finished_model())


def _opponent(round: Round, steps: RoundSteps) -> Opponent:
    """What the candidate is compared with; after the gate has decided, what it was compared with."""
    entries = steps.journal.entries()
    answered = last_end(entries, round.number, CycleStep.ANSWER)
    if answered is not None and last_end(entries, round.number, CycleStep.GATE) is not None:
        return Opponent(model=Path(answered.result["production"]), digest=answered.result["baseline"])
    found = in_production(round.plan)
    return Opponent(model=found.folder if found else round.start, digest=found.digest if found else "")


def _answer(round: Round, steps: RoundSteps, candidate: Path, digest: str, opponent: Opponent) -> str:
    """Both models answer the items; returns the digest of both files."""
    from rlhf.config.load import recipe_digest

    folder, items = round.folder / "answers", round.plan.config.items

    def make() -> None:
        folder.mkdir(exist_ok=True)
        for arm, model in ((CANDIDATE, candidate), (PRODUCTION, opponent.model)):
            out = folder / f"{arm}.jsonl"
            if not out.exists():
                work.answer_items(round.plan.path, round.settings, model, items, out)

    def read() -> StepOutcome:
        content = [file_sha256(folder / f"{arm}.jsonl") for arm in (CANDIDATE, PRODUCTION)]
        named = {"production": str(opponent.model), "baseline": opponent.digest}
        return StepOutcome(result={**named, "digest": canonical_digest(content)})

    inputs = {
        "candidate": digest,
        "production": opponent.digest or str(opponent.model),
        "items": file_sha256(Path(items).expanduser()),
        "sampling": recipe_digest(round.recipe, ("seed", "rollout")),
    }
    return str(steps.take(CycleStep.ANSWER, inputs, make, read, folder)["digest"])


def _compare(round: Round, steps: RoundSteps, answers: str) -> Mapping[str, Any]:
    """People compare the answers that differ: all of them, so that nobody chooses when to stop."""
    from rlhf.feedback.store import Store

    plan, copy = round.plan, round.folder / "comparison.db"
    name = f"{round.version}-{answers[:8]}"
    pairs = pairs_to_compare(_arms(round), plan.config.items, name)

    def count(store: Store) -> VoteCount:
        given, open_slots = store.round_progress(name, store.settings.overlap)
        return VoteCount(given=given, needed=given + open_slots)

    def make() -> None:
        if copy.exists():
            return
        with Store.open(plan.comparisons) as store:
            store.add_items(pairs)
            what = f"candidate and production of round {round.number}"
            await_votes(partial(count, store), what, plan.comparisons, round.hours)
            copy_project(store, copy)

    def read() -> StepOutcome:
        before = plan.folder(round.number - 1) / copy.name
        found = read_votes(copy, before if before.exists() else None)
        return StepOutcome(result={**found.result, "pairs": len(pairs)}, cost=found.cost)

    return steps.take(CycleStep.COMPARE, {"answers": answers}, make, read, copy)


def _arms(round: Round) -> Arms:
    from rlhf.arms.answers import read_arms

    config = _comparison(round, None)
    return read_arms(config.items, config.arms, config.base)


def _comparison(round: Round, votes: Path | None) -> ComparisonConfig:
    return round.plan.comparison(votes, round.folder / "answers")


def _evaluate(round: Round, steps: RoundSteps, answers: str, compared: Mapping[str, Any]) -> str:
    """Measure both models; returns the digest of both files of results."""
    from rlhf.arms.compare import compare_arms
    from rlhf.arms.people import read_votes as read_peoples_votes

    folder = round.folder / "evaluation"
    votes = round.folder / "comparison.db" if compared["pairs"] else None
    config = _comparison(round, votes)

    def make() -> None:
        from launch.evaluate.comparison import show_report
        from rlhf.tracking.console import Console

        if folder.exists():
            return
        done = compare_arms(config)
        people = read_peoples_votes(config.votes, done.arms) if config.votes else None
        show_report(Console(sys.stdout), done.report)
        rows = preference_rows(done.arms, people)
        report = json.dumps(done.report.as_json(), indent=1, ensure_ascii=False, allow_nan=False)
        with written_folder(folder) as partial_folder:
            write_atomically(partial_folder / "report.json", report + "\n")
            write_atomically(partial_folder / "preferred.jsonl", "".join(map(to_line, rows)))

    def read() -> StepOutcome:
        report = read_json(folder / "report.json", dict, AGAIN)
        preferred = preference_kpi(read_lines(folder / "preferred.jsonl"))
        digest = canonical_digest([file_sha256(folder / name) for name in ("report.json", "preferred.jsonl")])
        result = {"kpis": {PREFERRED: preferred, **metric_kpis(report)}, "digest": digest}
        return StepOutcome(result=result, cost={"judge_calls": float(report["usage"]["calls"])})

    inputs = {"answers": answers, "votes": compared["digest"], "comparison": json_safe(asdict(config))}
    return str(steps.take(CycleStep.EVALUATE, inputs, make, read, folder)["digest"])
