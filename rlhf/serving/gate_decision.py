"""A gate from its files to its decision: read, measure, decide, and put it into the form that is kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from rlhf.errors import UserError
from rlhf.serving.gate import KpiResult, decide
from rlhf.serving.gate_data import GateData, read_gate_data
from rlhf.serving.gate_history import question_of, require_look
from rlhf.serving.gate_result import FORMAT, GateOutcome, seal_decision
from rlhf.serving.gate_spec import GateConfig
from rlhf.serving.kpi import measure_kpi


@dataclass(frozen=True, kw_only=True)
class Subject:
    """What a gate decides about, as far as it is named."""

    artefact: str = ""
    """Digest of the candidate's files."""
    version: str = ""
    baseline: str = ""
    """Digest of production's files."""


@dataclass(frozen=True, kw_only=True)
class GateDecision:
    """A decision and its parts."""

    config: GateConfig
    outcome: GateOutcome
    kpis: tuple[KpiResult, ...]
    content: Mapping[str, Any]
    """The sealed content of ``gate.json``."""
    judge_calls: int


def run_gate(
    config: GateConfig, files: Sequence[str], subject: Subject, history: Sequence[Mapping[str, Any]]
) -> GateDecision:
    """Decide.

    Args:
        files: files of results.
        history: past decisions of the same folder.

    Raises:
        UserError: the results cannot be used, are of other artefacts, or another look is not allowed.
    """
    if not files:
        raise UserError("no results are given", fix="--results FILE, or the key results of the gate")
    metrics = {name: kpi.metric or name for name, kpi in config.kpis.items()}
    data = read_gate_data(files, metrics.values(), config.candidate, config.production)
    for name, metric in metrics.items():
        if metric not in data.series:
            why = f"the metric {metric} is in none of {', '.join(data.files)}"
            raise UserError(f"kpis.{name} has no data", why, "add a file of results, or correct the name")
    subject = _complete(subject, data)
    is_sequential = config.looks == "sequential"
    measured = {
        name: measure_kpi(name, kpi, data.series[metrics[name]], is_sequential) for name, kpi in config.kpis.items()
    }
    require_look(history, config, subject.artefact, data.files, measured)
    outcome, kpis = decide(config, measured)
    is_compared = any(kpi.is_compared for kpi in config.kpis.values())
    body = {
        "format": FORMAT,
        "for": config.for_stage,
        "outcome": str(outcome),
        "artefact": subject.artefact,
        "version": subject.version,
        "baseline": subject.baseline if is_compared else "",
        "compared": is_compared,
        "question": question_of(config),
        "gate": {"require": config.require, "confidence": config.confidence, "correction": config.correction}
        | {"looks": config.looks},
        "data": dict(data.files),
        "seen": {name: dict(found.seen) for name, found in measured.items()},
        "kpis": [{**asdict(kpi), "outcome": str(kpi.outcome)} for kpi in kpis],
        "summary": [describe_kpi(kpi) for kpi in kpis],
    }
    content = seal_decision(body)
    return GateDecision(config=config, outcome=outcome, kpis=kpis, content=content, judge_calls=data.judge_calls)


def describe_kpi(kpi: KpiResult) -> str:
    """One line about a KPI: the estimate with its bound, the bar, and the outcome."""
    found = "no data" if kpi.estimate is None else f"{kpi.estimate:.4g}"
    side = "above" if kpi.direction == "higher" else "below"
    what = "mean" if kpi.decided_by == "absolute" else "difference from production"
    bound = "" if kpi.bound is None else f", bound {kpi.bound:.4g}"
    return f"{kpi.name}: {kpi.outcome}; {what} {found}{bound}, must be {side} {kpi.bar:.4g}; n {kpi.n:,}"


def _complete(subject: Subject, data: GateData) -> Subject:
    """The subject with the digests that the results name.

    Raises:
        UserError: they are of another artefact or another production than the command names, or of several.
    """
    return replace(
        subject,
        artefact=_one_digest(data.artefacts, subject.artefact, "artefact"),
        baseline=_one_digest(data.baselines, subject.baseline, "production artefact"),
    )


def _one_digest(found: frozenset[str], given: str, what: str) -> str:
    digests = {*found, given} - {""}
    if len(digests) > 1:
        why = f"digests: {', '.join(digest[:12] for digest in sorted(digests))}"
        raise UserError(f"the results are of more than one {what}", why, "give the results of one")
    return next(iter(digests), "")
