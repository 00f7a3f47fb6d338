"""Formats events, samples and names as single lines that are safe to show, whatever their content."""

from __future__ import annotations

from dataclasses import fields
from datetime import datetime
from typing import Any

from launch.report.read import LOSSES, number
from launch.watch.follow import Row
from rlhf.models.examination import Examination
from rlhf.secrets import without_secrets
from rlhf.tracking.console import format_number, one_line

TROUBLE = frozenset({*LOSSES, "failed", "checkpoint_failed", "snapshot_lost"})
"""Kinds of events about failures."""
GOOD = frozenset({"actor_replaced", "checkpoint", "restored", "resumed"})
"""Kinds of events about normal operation; all others are warnings."""
_TEXT_FIELDS = ("message", "why", "error", "reason", "cause", "what", "path", "where")
"""Fields of an event, of which the first one present is its text."""
_OWN_FIELDS = ("time", "when", "kind", "step", "member", "phase")


def describe_event(event: Row) -> str:
    """A line of an event: its kind, actor, time and text."""
    event = without_secrets(event)
    if event.get("kind") == "actor_replaced":
        return _describe_replacement(event)
    if event.get("kind") == "examined" and (line := _describe_examination(event)):
        return line
    kind, step, phase = one_line(event.get("kind", "event")), event.get("step"), event.get("phase")
    if event.get("member"):
        kind = f"{one_line(event['member'])} {kind.removeprefix('actor_')}"
    else:
        kind = kind.replace("_", " ")
    if step is not None:
        kind += f" in {one_line(phase)} of step {one_line(step)}" if phase else f" at step {one_line(step)}"
    detail = _detail(event)
    return f"{kind}: {detail}" if detail else kind


def _describe_replacement(event: Row) -> str:
    """A line of an actor that serves again; its phase and step are those in which it was lost."""
    seconds, step, phase = number(event.get("seconds")), event.get("step"), event.get("phase")
    line = f"{one_line(event.get('member', 'actor'))} replaced"
    line += "" if seconds is None else f": after {seconds:.1f} s"
    of_step = "" if step is None else f" of step {one_line(step)}"
    return f"{line}, lost in {one_line(phase)}{of_step}" if phase else line


def _describe_examination(event: Row) -> str:
    """The sentence that the run's console shows of a model; empty if the event is of another version."""
    known = {field.name: event[field.name] for field in fields(Examination) if field.name in event}
    try:
        return f"{one_line(event.get('member', 'model'))} examined: {one_line(Examination(**known).line())}"
    except (TypeError, ValueError):
        return ""


def _detail(event: Row) -> str:
    text = next((event[name] for name in _TEXT_FIELDS if event.get(name)), None)
    if text is not None:
        advice = event.get("advice") if event.get("kind") in LOSSES else None
        return f"{one_line(text)}; what to do: {one_line(advice)}" if advice else one_line(text)
    rest = {name: value for name, value in event.items() if name not in _OWN_FIELDS and value not in (None, "")}
    return ", ".join(f"{one_line(name.replace('_', ' '))} {_short(value)}" for name, value in rest.items())


def _short(value: Any) -> str:
    return one_line(format_number(value) if isinstance(value, float) else value)


def local_time(event: Row) -> str:
    """Local time of an event: ``14:05:09``; empty if it has none."""
    try:
        return datetime.fromisoformat(str(event.get("time"))).astimezone().strftime("%H:%M:%S")
    except (ValueError, OverflowError):
        return ""


def describe_sample(sample: Row) -> str:
    """Details of a response besides its text: reason for showing it, score, KL, end."""
    parts = [one_line(sample["pick"])] if sample.get("pick") else []
    for name, key in (("score", "score"), ("KL", "kl"), ("advantage", "advantage")):
        if (value := number(sample.get(key))) is not None:
            parts.append(f"{name} {value:.3g}")
    if sample.get("finish_reason") == "length":
        parts.append("cut off")
    return " · ".join(parts)
