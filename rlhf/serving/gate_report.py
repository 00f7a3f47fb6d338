"""A gate's decision as Markdown, and the tables that the console and W&B show as well."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from rlhf.serving.gate import KpiResult
from rlhf.serving.gate_decision import GateDecision
from rlhf.serving.markdown import escape_markdown, markdown_table

KPI_COLUMNS = ("KPI", "outcome", "estimate", "bound", "must be", "n", "p pass", "p fail")
COSTS = {"rater_minutes": "rater minutes", "gpu_hours": "GPU hours", "judge_calls": "judge calls"}
MOST_ROUNDS = 8


@dataclass(frozen=True, kw_only=True)
class GateTable:
    """Column names and rows of text."""

    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def kpi_table(kpis: Sequence[KpiResult]) -> GateTable:
    """One row for each KPI."""
    return GateTable(columns=KPI_COLUMNS, rows=tuple(map(_kpi_row, kpis)))


def describe_tests(kpis: Sequence[KpiResult]) -> list[str]:
    """By which test each KPI was decided; or why it was not, and how many more units would decide."""
    lines = []
    for kpi in kpis:
        more = f"about {kpi.more:,} more would decide" if kpi.more else ""
        lines.append("; ".join(filter(None, (f"{kpi.name}: {kpi.method}", kpi.reason, more))))
    return lines


def trend_table(history: Sequence[Mapping[str, Any]]) -> GateTable:
    """The last decisions: version, outcome, each KPI's estimate, and costs."""
    rounds = history[-MOST_ROUNDS:]
    names = tuple(dict.fromkeys(kpi["name"] for row in rounds for kpi in row["kpis"]))
    costs = tuple(key for key in COSTS if any(key in row.get("costs", {}) for row in rounds))
    rows = []
    for row in rounds:
        estimates = {kpi["name"]: kpi["estimate"] for kpi in row["kpis"]}
        when = datetime.fromtimestamp(row["time"], UTC).strftime("%Y-%m-%d %H:%M")
        head = (when, row["version"] or row["artefact"][:12] or "-", row["for"], row["outcome"])
        paid = tuple(_number(row.get("costs", {}).get(key)) for key in costs)
        rows.append((*head, *(_number(estimates.get(name)) for name in names), *paid))
    columns = ("decided (UTC)", "version", "for", "outcome", *names, *(COSTS[key] for key in costs))
    return GateTable(columns=columns, rows=tuple(rows))


def describe_gain(history: Sequence[Mapping[str, Any]]) -> list[str]:
    """What the last round gained over the one before, by KPI, and what it cost; empty for a first round.

    A round is another artefact: looks at the same one are no gain.
    """
    now = history[-1] if history else None
    earlier = [row for row in history if now and row["artefact"] != now["artefact"] and row["for"] == now["for"]]
    if now is None or not earlier:
        return []
    before = {kpi["name"]: kpi["estimate"] for kpi in earlier[-1]["kpis"]}
    costs = ", ".join(f"{value:,.4g} {COSTS[key]}" for key, value in now.get("costs", {}).items())
    lines = []
    for kpi in now["kpis"]:
        if kpi["estimate"] is not None and before.get(kpi["name"]) is not None:
            change = kpi["estimate"] - before[kpi["name"]]
            lines.append(f"{kpi['name']}: {change:+.4g} since {earlier[-1]['version'] or 'the round before'}")
    return [f"{line}, for {costs}" if costs else line for line in lines]


def gate_markdown(decision: GateDecision, history: Sequence[Mapping[str, Any]]) -> str:
    """The whole report; ``history`` ends with this decision."""
    content, config = decision.content, decision.config
    subject = content["version"] or "the candidate"
    table = kpi_table(decision.kpis)
    data = [(name, digest) for name, digest in content["data"].items()]
    lines = [
        f"# Gate for {config.for_stage}: {decision.outcome}",
        "",
        f"{escape_markdown(subject)}, artefact `{content['artefact'] or 'not named'}`, "
        f"compared with production `{content['baseline'] or 'not named'}`.",
        "",
        markdown_table(table.columns, table.rows),
        *(f"- {escape_markdown(line)}" for line in describe_tests(decision.kpis)),
        "",
        _describe_rule(decision),
        "",
        "## Data",
        "",
        markdown_table(("file", "SHA-256"), data),
        "## Rounds",
        "",
        markdown_table(trend_table(history).columns, trend_table(history).rows),
        *(f"- {escape_markdown(line)}" for line in describe_gain(history)),
        "",
        f"Digest of this decision: `{content['digest']}`",
    ]
    return "\n".join(lines) + "\n"


def _describe_rule(decision: GateDecision) -> str:
    config = decision.config
    level = f"{1 - config.confidence:.3g}"
    looks = "at this one look" if config.looks == "fixed" else "over any number of looks"
    if config.require == "all":
        rule = f"All KPIs must pass; a candidate that is not good enough passes with a probability of at most {level}"
    else:
        rule = f"One KPI that passes is enough; a false pass has a probability of at most {level}"
    side = "fail" if config.require == "all" else "pass"
    corrected = (
        f"p {side} is corrected by {config.correction}" if config.correction != "none" else "nothing is corrected"
    )
    return f"{rule}, {looks}; {corrected}."


def _kpi_row(kpi: KpiResult) -> tuple[str, ...]:
    side = ">" if kpi.direction == "higher" else "<"
    what = "" if kpi.decided_by == "absolute" else "difference "
    return (
        kpi.name,
        str(kpi.outcome),
        what + _number(kpi.estimate),
        _number(kpi.bound),
        f"{side} {kpi.bar:.4g}",
        f"{kpi.n:,}",
        f"{kpi.p_pass:.3g}",
        f"{kpi.p_fail:.3g}",
    )


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:,.4g}"
