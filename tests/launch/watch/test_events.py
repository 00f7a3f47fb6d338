"""Repeated events are folded; failures are not."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import pytest

from launch.watch.describe import describe_event
from launch.watch.events import fit_events, fold_events
from rlhf.models.examination import Examination


def events(text: str) -> list[dict[str, Any]]:
    """Events by letters: checkpoint, examined, loss, replacement, KL alert, length alert, end tokens."""
    known: dict[str, dict[str, Any]] = {
        "c": {"kind": "checkpoint"},
        "x": {"kind": "examined", "member": "policy"},
        "d": {"kind": "actor_died", "member": "critic rank 0"},
        "r": {"kind": "actor_replaced", "member": "critic rank 0"},
        "k": {"kind": "alert", "alert": "kl", "message": "KL"},
        "l": {"kind": "alert", "alert": "length", "message": "length"},
        "e": {"kind": "end_tokens"},
        "?": {"kind": ["not", "text"]},
    }
    return [{**known[letter], "step": i} for i, letter in enumerate(text)]


def folded(text: str, count: int = 100) -> list[str]:
    """Letter, number and last step of each group."""
    letters = {"checkpoint": "c", "examined": "x", "actor_died": "d", "actor_replaced": "r", "end_tokens": "e"}
    return [
        f"{letters.get(group.kind) or str(group.last.get('alert', '?'))[0]}{group.count}@{group.last['step']}"
        for group in fit_events(fold_events(events(text)), count)
    ]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", []),
        ("c", ["c1@0"]),
        ("ccc", ["c3@2"]),
        ("cdc", ["d1@1", "c2@2"]),
        ("dd", ["d1@0", "d1@1"]),  # each failure counts
        ("drdr", ["d1@0", "r1@1", "d1@2", "r1@3"]),
        ("kck", ["c1@1", "k2@2"]),  # a checkpoint between two warnings does not part them
        ("kdk", ["k1@0", "d1@1", "k1@2"]),
        ("klk", ["k1@0", "l1@1", "k1@2"]),
        ("xxecxcdcc", ["e1@2", "x3@4", "d1@6", "c4@8"]),
        ("??", ["?2@1"]),
    ],
)
def test_folding(text: str, expected: list[str]) -> None:
    assert folded(text) == expected


@pytest.mark.parametrize(
    ("text", "count", "expected"),
    [
        ("dkc", 3, ["d1@0", "k1@1", "c1@2"]),
        ("dkc", 2, ["d1@0", "k1@1"]),
        ("dkc", 1, ["k1@1"]),
        ("xdec", 3, ["d1@1", "e1@2", "c1@3"]),
        ("ec", 1, ["c1@1"]),
        ("", 1, []),
    ],
)
def test_what_matters_is_kept_where_lines_are_few(text: str, count: int, expected: list[str]) -> None:
    assert folded(text, count) == expected


def test_a_group_says_its_number_and_its_beginning() -> None:
    rows = [{"kind": "checkpoint", "step": i, "time": f"2026-02-03T04:05:0{i}+00:00"} for i in range(3)]
    [group] = fold_events(rows)
    assert group.describe().startswith("checkpoint at step 2 (×3 since ") and group.describe().endswith(":05:00)")
    assert fold_events(rows[:1])[0].describe() == "checkpoint at step 0"
    assert fold_events([{"kind": "checkpoint"}] * 2)[0].describe() == "checkpoint (×2)"


def test_an_examination_is_the_consoles_sentence() -> None:
    found = Examination(form="packed", tokens=120, padded=1.627e-07, packed=2e-07)
    event = {"time": "2026-01-01T00:00:00", "kind": "examined", "member": "critic", **asdict(found)}
    assert describe_event(event) == f"critic examined: {found.line()}"
    assert "form odd" in describe_event({"kind": "examined", "member": "critic", "form": "odd", "packed": "text"})
