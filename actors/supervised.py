"""The stages SFT, reward model and DPO: their group of ranks, its model, and the results of a stage."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from actors.group import Group
from actors.placement import Placement
from actors.session import Session
from actors.supervisor import STATUS, Supervisor
from actors.timeline import TimelineCollector
from actors.waiting import START, PhaseContext
from actors.worker import Builder
from rlhf.config.schema import Stage
from rlhf.evaluation.accuracy import accuracy_ceiling
from rlhf.models.examination import Examination
from rlhf.models.folder import differing_ends, end_tokens
from rlhf.storage.write_errors import writing
from rlhf.tracking.metric_rows import read_metric_rows
from rlhf.tracking.run_folder import RunFolder
from rlhf.tracking.spans import PhaseTimer
from rlhf.tracking.tracker import Tracker

Summary = dict[str, float | str]
"""Results shown at the end of a stage, in display order."""


@contextmanager
def running_group(
    session: Session,
    role: str,
    stage: Stage,
    run: RunFolder,
    tracker: Tracker,
    builder: Builder,
    *arguments: Any,
) -> Iterator[Group]:
    """Context in which a role's ranks run, each with ``builder(recipe, *arguments, rank)``.

    Raises:
        MachineryError: a rank failed before the first step, or ranks failed more often than it may be replaced.
    """
    placement = Placement(session.recipe, session.device, stage, session.gpus, session.check)
    timeline = TimelineCollector(tracker.timeline, tracker.spans)
    supervisor = Supervisor(
        session.recipe, tracker.event, session.check, run.path / STATUS, timeline, session.console.notice
    )
    group = Group(role, getattr(session.recipe.placement, role).ranks, placement, run.logs, supervisor)
    try:
        with supervisor.diagnosed():
            group.start(builder, session.recipe, *arguments)
            with supervisor.on_timeline():
                with timeline.spans("start"):
                    group.ready()
                    supervisor.serve(group.names)
                yield group
    finally:
        group.stop()
        placement.release()


def save_model(
    session: Session, run: RunFolder, group: Group, timer: PhaseTimer, method: str = "save", *arguments: Any
) -> None:
    """Save the group's model, by a method of its role, and the tokenizer to ``run.model``."""
    context = PhaseContext(phase="save")
    group.supervisor.enter_phase(context)
    session.console.notice("saving the model")
    with timer("save"), run.writing_model() as folder:
        group.ask(method, folder.resolve(), *arguments, context=context)
        with writing(folder / "tokenizer.json"):
            session.tokenizer.save_pretrained(folder)


def read_ceiling(session: Session) -> Summary:
    """The accuracy that the labels' noise permits, for the summary, if it was computed from these comparisons."""
    file = session.recipe.reward.ceiling
    found = accuracy_ceiling(file, session.preferences.files)
    if file is not None and not found:
        session.console.print(f"reward.ceiling: {file} was computed for other comparisons, so it is not shown")
    return found


def record_examinations(session: Session, tracker: Tracker, groups: Mapping[str, Group], model: Path) -> Summary:
    """Record and print each role's examination of its model; returns lines for the stage's summary.

    Args:
        model: folder of the language model whose end tokens are used.
    """
    summary: Summary = {}
    for role, group in groups.items():
        found: Examination = group.ask("examined", context=PhaseContext(phase=START))[0]
        tracker.event("examined", member=role, **asdict(found))
        summary[f"examined, {role}"] = found.line()
        session.console.print("\n".join([f"{role}: {found.line()}", *(f"  {note}" for note in found.notes)]))
    ends = end_tokens(session.tokenizer, model)
    tracker.event("end_tokens", **ends)
    if note := differing_ends(ends):
        session.console.print(note)
        summary["end tokens"] = note
    return summary


def select_metrics(metrics: Mapping[str, float], names: Mapping[str, str]) -> Summary:
    """Select metrics and rename them for display; absent ones are left out."""
    return {shown: metrics[metric] for shown, metric in names.items() if metric in metrics}


def recorded_rows(run: RunFolder) -> list[dict[str, float]]:
    """Rows of ``metrics.jsonl``, of all commands of the stage; numbers that are not finite are left out."""
    rows = read_metric_rows(run.metrics)
    return [{name: value for name, value in row.items() if value is not None} for row in rows]


def latest_values(history: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The last value of every metric."""
    return {name: value for row in history for name, value in row.items()}


def recorded_seconds(history: Sequence[Mapping[str, float]]) -> Summary:
    """Total seconds of each phase over rows of ``metrics.jsonl``, which may be of several commands."""
    totals: dict[str, float] = {}
    for row in history:
        for name, value in row.items():
            if name.startswith("time/"):
                totals[name.removeprefix("time/")] = totals.get(name.removeprefix("time/"), 0.0) + value
    return {f"seconds, {phase}": total for phase, total in totals.items()}
