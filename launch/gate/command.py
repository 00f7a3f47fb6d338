"""``rlhf gate``: decides by a file of KPIs, and records the decision."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from launch.hashing import shown_hashing
from launch.options import Overrides
from rlhf.errors import UserError

if TYPE_CHECKING:
    from rlhf.serving.gate_decision import GateDecision, Subject

PURPOSE = "decide by KPIs, with confidence, whether a candidate may go one step towards production"
EXAMPLE = "rlhf gate gate.yaml --results report.json --registry registry.db --artefact travel-3 --out gates/travel-3"
EXIT_CODES = {"pass": 0, "fail": 1, "inconclusive": 4}


def run(
    gate: Annotated[Path, typer.Argument(metavar="GATE.yaml", help="KPIs, see docs/production.md")],
    overrides: Overrides,
    results: Annotated[
        list[str],
        typer.Option(
            default_factory=list, show_default=False, metavar="FILE", help="report, counts or JSONL of values"
        ),
    ],
    registry: Annotated[
        Path | None, typer.Option(metavar="REGISTRY.db", help="where the artefact and production are registered")
    ] = None,
    artefact: Annotated[
        str | None, typer.Option(metavar="VERSION", help="with --registry: the artefact that was measured")
    ] = None,
    model: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="without --registry: the model folder that was measured")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="folder for gate.json, gate.md and history.jsonl")
    ] = None,
    wandb: Annotated[bool, typer.Option("--wandb", help="also log the tables to W&B; needs --out")] = False,
) -> int:
    """Decide; returns the exit code: 0 passed, 1 failed, 4 inconclusive.

    Raises:
        UserError: the gate, the results or the folder cannot be used, or another look is not allowed.
    """
    from rlhf.serving.gate_costs import read_costs
    from rlhf.serving.gate_decision import run_gate
    from rlhf.serving.gate_history import read_history
    from rlhf.serving.gate_spec import load_gate

    if wandb and out is None:
        raise UserError("--wandb needs --out", "an offline run is kept there", "--out gates/travel-3")
    folder = None if out is None else out.expanduser()
    config = load_gate(gate, overrides)
    history = read_history(folder) if folder else []
    subject = _subject(registry, artefact, model)
    decision = run_gate(config, [*config.results, *results], subject, history)
    costs = read_costs(config.costs, decision.judge_calls)
    record = {"time": time.time(), **decision.content, "costs": costs}
    looks = len(history)
    history = [*[row for row in history if row.get("digest") != decision.content["digest"]], record]
    if folder is not None:
        _write(folder, decision, record, history, looks)
    _show(decision, history, folder)
    if wandb and folder is not None:
        from launch.gate.wandb_tables import log_gate

        log_gate(folder, decision, history)
    return EXIT_CODES[decision.outcome]


def _subject(registry: Path | None, artefact: str | None, model: Path | None) -> Subject:
    from rlhf.serving.artefact import artefact_digest, hash_model
    from rlhf.serving.gate_decision import Subject

    if (registry is None) != (artefact is None):
        raise UserError("--registry and --artefact belong together", fix="give both, or --model, or none")
    if registry is not None and model is not None:
        raise UserError("--model has no effect with --registry", fix="leave one out")
    if model is not None:
        with shown_hashing() as progress:
            return Subject(artefact=artefact_digest(hash_model(model, progress)))
    if registry is None:
        return Subject()
    from rlhf.serving.registry import Registry

    with Registry(registry) as opened, shown_hashing() as opened.hashing:
        found = opened.verify(str(artefact))
        production = opened.serving().production
    return Subject(artefact=found.digest, version=found.version, baseline=production.digest if production else "")


def _write(
    folder: Path, decision: GateDecision, record: dict[str, Any], history: list[dict[str, Any]], looks: int
) -> None:
    """Write a decision, first into the history: what was shown is in it, whatever happens.

    Args:
        looks: past decisions that this one knows of.

    Raises:
        UserError: nothing can be written there, or another command has decided there meanwhile.
    """
    from rlhf.serving.gate_history import add_decision, read_history
    from rlhf.serving.gate_report import gate_markdown
    from rlhf.storage.durable import write_atomically
    from rlhf.storage.locking import sole_writer

    content = json.dumps(decision.content, indent=1, ensure_ascii=False, allow_nan=False)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with sole_writer(folder):
            if len(read_history(folder)) != looks:
                what = f"another gate has decided in {folder} meanwhile"
                raise UserError(what, "this decision does not know of that look", "give the command again")
            add_decision(folder, record)
            write_atomically(folder / "gate.md", gate_markdown(decision, history))
            write_atomically(folder / "gate.json", content + "\n")
    except OSError as error:
        raise UserError(f"--out {folder}: {error.strerror}", fix="name a folder that you may write to") from error


def _show(decision: GateDecision, history: list[dict[str, Any]], folder: Path | None) -> None:
    from launch.gate.show import show_table
    from rlhf.serving.gate_report import describe_gain, describe_tests, kpi_table, trend_table

    config, content = decision.config, decision.content
    show_table(f"gate for {config.for_stage}", kpi_table(decision.kpis), sys.stdout)
    lines = describe_tests(decision.kpis)
    if len(history) > 1:
        show_table("rounds", trend_table(history), sys.stdout)
        lines += describe_gain(history)
    print("\n".join(lines))
    subject = content["version"] or content["artefact"][:12] or "a candidate that no artefact is named for"
    print(f"{decision.outcome}: {subject}, for {config.for_stage}; digest {content['digest'][:12]}")
    if folder is not None:
        print(f"→ {folder / 'gate.json'}")
