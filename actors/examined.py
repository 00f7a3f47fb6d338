"""Records and shows how the stage's actors examined their models before the first use."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

from actors.group import Group
from actors.session import Session
from actors.supervised import Summary
from actors.waiting import START, Moment
from rlhf.models.examination import Examination
from rlhf.models.folder import differing_ends, end_tokens
from rlhf.tracking.tracker import Tracker


def record_examinations(session: Session, tracker: Tracker, groups: Mapping[str, Group], model: Path) -> Summary:
    """Record and print each role's examination of its model; returns lines for the stage's summary.

    Args:
        model: folder of the language model whose end tokens are used.
    """
    summary: Summary = {}
    for role, group in groups.items():
        found: Examination = group.ask("examined", moment=Moment(phase=START))[0]
        tracker.event("examined", member=role, **asdict(found))
        summary[f"examined, {role}"] = found.line()
        session.console.print("\n".join([f"{role}: {found.line()}", *(f"  {note}" for note in found.notes)]))
    ends = end_tokens(session.tokenizer, model)
    tracker.event("end_tokens", **ends)
    if note := differing_ends(ends):
        session.console.print(note)
        summary["end tokens"] = note
    return summary
