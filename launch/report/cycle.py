"""The page of a cycle: numbers of all rounds with their intervals, what they cost, and what is served now."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from markupsafe import Markup

from launch.report import tables
from launch.report.charts import Chart, Line
from launch.report.page import Charts, Section, Subsection, render_page
from launch.report.read import RunRecord, number
from rlhf.cycle.journal import JOURNAL, CycleStep, read_journal
from rlhf.cycle.rounds import COSTS, RoundRecord, read_rounds
from rlhf.errors import RLHFError
from rlhf.serving.artefact import ServingStage
from rlhf.serving.ledger import Ledger
from rlhf.serving.registry import Registry

ARMS = ("candidate", "production")
SERVED = (ServingStage.PRODUCTION, ServingStage.CANARY, ServingStage.SHADOW)


def is_cycle(root: Path) -> bool:
    """Whether a folder is a cycle's."""
    return (root / JOURNAL).is_file()


def cycle_page(root: Path, made: datetime) -> str:
    """The HTML of a cycle; ``made`` is the time that the page gives as its own.

    Raises:
        UserError: the journal is damaged.
    """
    records = read_rounds(read_journal(root / JOURNAL))
    ledger, notes = _read_registry(records)
    rounds = [record for record in records if record.number]
    charts = Charts()
    sections = [
        Section(title="Rounds", subsections=[Subsection(parts=[_rounds(rounds, root)])]),
        Section(title="Numbers by round", subsections=[_kpis(rounds, charts)]),
        Section(title="Gates", subsections=[Subsection(parts=[_gates(rounds)])]),
        Section(
            title="Costs", subsections=[Subsection(charts=charts.draw(_cost_charts(rounds)), parts=[_costs(records)])]
        ),
    ]
    if ledger is not None:
        sections.append(Section(title="Served now", subsections=[Subsection(parts=[_served(ledger, root)])]))
        sections.append(Section(title="Audit", subsections=[Subsection(parts=[_audit(ledger)])]))
    run = RunRecord(name=root.resolve().name, stages=(), comparison={}, notes=notes)
    return render_page(run, made, list(_headline(rounds, ledger)), sections, charts)


def _read_registry(records: Sequence[RoundRecord]) -> tuple[Ledger | None, list[str]]:
    """The registry's content, or a note why there is none."""
    start = next((record.result(CycleStep.START) for record in records if record.number == 0), {})
    path = Path(str(start.get("registry", "")))
    if not start or not path.is_file():
        return None, [f"no registry yet: {path}"] if start else []
    try:
        with Registry(path) as registry:
            return registry.ledger(), []
    except RLHFError as error:
        return None, [f"the registry cannot be read: {error}"]


def _headline(rounds: Sequence[RoundRecord], ledger: Ledger | None) -> Iterator[tuple[str, str]]:
    yield "rounds finished", str(sum(record.state == "finished" for record in rounds))
    if rounds and rounds[-1].state != "finished":
        yield f"round {rounds[-1].number}", rounds[-1].state
    for stage in SERVED if ledger is not None else ():
        found = ledger.at(stage) if ledger is not None else None
        yield f"in {stage}", found.version if found else "nothing"


def _rounds(rounds: Sequence[RoundRecord], root: Path) -> Markup:
    rows = [
        [
            record.number,
            record.state,
            record.result(CycleStep.LABEL).get("votes"),
            record.result(CycleStep.COMPARE).get("votes"),
            record.result(CycleStep.GATE).get("outcome"),
            record.result(CycleStep.PROMOTE).get("stage"),
            _from(root, record.result(CycleStep.START).get("model")),
        ]
        for record in rounds
    ]
    columns = (
        "round",
        "state",
        "votes to learn from",
        "votes on the candidate",
        "gate",
        "stage at its end",
        "started from",
    )
    note = "rlhf report <this folder>/rounds/round_<n> shows the training of a round"
    return tables.table(columns, rows, "rounds", note=note)


def _from(root: Path, path: Path | str | None) -> str | None:
    """A path as seen from the cycle's folder, if it is in it."""
    if path is None:
        return None
    inside = Path(path).resolve()
    return str(inside.relative_to(root.resolve())) if inside.is_relative_to(root.resolve()) else str(path)


def _kpis(rounds: Sequence[RoundRecord], charts: Charts) -> Subsection:
    """A chart and rows for each metric."""
    results = {record.number: record.result(CycleStep.EVALUATE).get("kpis", {}) for record in rounds}
    names = list(dict.fromkeys(name for kpis in results.values() for name in kpis))
    drawn = charts.draw([_kpi_chart(name, results) for name in names])
    rows = [
        [name, round, arm, *(kpis[name][arm].get(key) for key in ("value", "low", "high")), kpis[name].get("n")]
        for name in names
        for round, kpis in results.items()
        for arm in ARMS
        if arm in kpis.get(name, {})
    ]
    columns = ("metric", "round", "arm", "mean", "low", "high", "items")
    note = (
        "intervals of 95%; preferred: fraction of items on which people prefer the candidate, ties count half; "
        "production: the registry's, or the cycle's first model while nothing is in production"
    )
    return Subsection(charts=drawn, parts=[tables.table(columns, rows, "numbers by round", note=note)] if rows else [])


def _kpi_chart(name: str, results: dict[int, dict[str, Any]]) -> Chart:
    lines = []
    for arm in ARMS:
        found = {round: kpis[name][arm] for round, kpis in results.items() if arm in kpis.get(name, {})}
        if found:
            lines.append(
                Line(
                    name=arm,
                    points=tuple((float(round), number(each.get("value"))) for round, each in found.items()),
                    low=tuple((float(round), number(each.get("low"))) for round, each in found.items()),
                    high=tuple((float(round), number(each.get("high"))) for round, each in found.items()),
                )
            )
    levels = [("neither is preferred", 0.5)] if name == "preferred" else []
    return Chart(title=name, unit="mean", lines=lines, levels=levels, axis="round")


def _gates(rounds: Sequence[RoundRecord]) -> Markup:
    rows = [
        [record.number, gate["outcome"], line, gate["digest"][:12]]
        for record in rounds
        if (gate := record.result(CycleStep.GATE))
        for line in gate["summary"]
    ]
    return tables.table(("round", "gate", "KPI", "digest"), rows, "gates")


def _cost_charts(rounds: Sequence[RoundRecord]) -> list[Chart]:
    return [
        Chart(
            title=title,
            unit="of a round",
            lines=[Line(name=title, points=tuple((float(r.number), r.total(cost)) for r in rounds))],
            axis="round",
        )
        for cost, title in COSTS.items()
        if any(record.total(cost) for record in rounds)
    ]


def _costs(records: Sequence[RoundRecord]) -> Markup:
    rows = [
        [record.number, str(step), *(round(cost[key], 2) if key in cost else None for key in COSTS)]
        for record in records
        for step, cost in record.costs.items()
        if any(round(value, 2) for value in cost.values())
    ]
    note = "time of attempts that were killed counts in training only; waiting for votes costs no machine time"
    return tables.table(("round", "step", *COSTS.values()), rows, "costs by step", note=note)


def _served(ledger: Ledger, root: Path) -> Markup:
    rows: list[list[tables.Cell]] = [
        [str(stage), each.version, each.digest[:12], _from(root, each.folder)]
        for stage in dict.fromkeys((*SERVED, *ServingStage))
        for each in ledger.artefacts.values()
        if each.stage is stage
    ]
    return tables.table(("stage", "version", "digest", "folder"), rows, "artefacts by stage")


def _audit(ledger: Ledger) -> Markup:
    rows: list[list[tables.Cell]] = [
        [
            entry.number,
            datetime.fromtimestamp(entry.time, UTC).strftime("%Y-%m-%d %H:%M:%S"),
            entry.who,
            entry.action,
            entry.version,
            entry.stage,
            entry.why,
            entry.gate[:12],
        ]
        for entry in ledger.entries
    ]
    columns = ("entry", "time (UTC)", "who", "action", "version", "stage", "why", "gate")
    note = f"the chain of hashes is whole; the last one is {ledger.head[:12]}"
    return tables.table(columns, rows, "audit of the registry", note=note)
