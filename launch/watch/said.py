"""Events, samples and names as single lines that can be put on a screen whatever is in them."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from launch.report.read import number
from launch.watch.follow import Row
from rlhf.secrets import without_secrets
from rlhf.tracking.console import format_number, one_line

TROUBLE = frozenset({"actor_died", "actor_stalled", "actor_failed", "failed", "checkpoint_failed", "snapshot_lost"})
"""Kinds of events that tell of something that broke."""
GOOD = frozenset({"actor_replaced", "checkpoint", "resumed"})
"""Kinds of events that tell of something as it should be; all others are warnings."""
_SAID = ("message", "why", "error", "reason", "cause", "what", "path", "where")
"""The first of these is what an event says."""
_SHOWN_APART = ("time", "when", "kind", "step", "member", "phase")


def told(event: Row) -> str:
    """An event in a line: what kind, of whom, when, and what it says."""
    event = without_secrets(event)
    kind, step, phase = one_line(event.get("kind", "event")), event.get("step"), event.get("phase")
    if event.get("member"):
        kind = f"{one_line(event['member'])} {kind.removeprefix('actor_')}"
    else:
        kind = kind.replace("_", " ")
    if step is not None:
        kind += f" in {one_line(phase)} of step {one_line(step)}" if phase else f" at step {one_line(step)}"
    detail = _detail(event)
    return f"{kind}: {detail}" if detail else kind


def _detail(event: Row) -> str:
    seconds = number(event.get("seconds"))
    if event.get("kind") == "actor_replaced" and seconds is not None:
        return f"after {seconds:.1f} s"
    said = next((event[name] for name in _SAID if event.get(name)), None)
    if said is not None:
        return one_line(said)
    rest = {name: value for name, value in event.items() if name not in _SHOWN_APART and value not in (None, "")}
    return ", ".join(f"{one_line(name)} {_short(value)}" for name, value in rest.items())


def _short(value: Any) -> str:
    return one_line(format_number(value) if isinstance(value, float) else value)


def clock(event: Row) -> str:
    """When an event was, in this machine's time: ``14:05:09``; empty where it does not say."""
    try:
        return datetime.fromisoformat(str(event.get("time"))).astimezone().strftime("%H:%M:%S")
    except (ValueError, OverflowError):
        return ""


def about(sample: Row) -> str:
    """What is known of a response beside its text: why it is shown, score, KL, how it ended."""
    parts = [one_line(sample["pick"])] if sample.get("pick") else []
    for name, key in (("score", "score"), ("KL", "kl"), ("advantage", "advantage")):
        if (value := number(sample.get(key))) is not None:
            parts.append(f"{name} {value:.3g}")
    if sample.get("finish_reason") == "length":
        parts.append("cut off")
    return " · ".join(parts)
