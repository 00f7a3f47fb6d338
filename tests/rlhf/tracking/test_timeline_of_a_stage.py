"""Tests of the tracker's timeline in the stage's folder; none of its failures stops a run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rlhf.config.schema import Recipe, TrackingConfig
from rlhf.storage.jsonl import read_lines
from rlhf.tracking.run_folder import RunFolder
from rlhf.tracking.spans import PhaseTimer, Span
from rlhf.tracking.tracker import Tracker

RECIPE = Recipe(name="demo", tracking=TrackingConfig(wandb="disabled"))
SPAN = Span(name="update", begin=1.0, end=2.0, step=0)


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    return RunFolder.create(tmp_path / "demo", "ppo", "", "abc")


def test_events_are_instants_in_the_row_of_their_actor(run: RunFolder) -> None:
    tracker = Tracker(run, RECIPE)
    tracker.spans("node a", "policy rank 0", [SPAN])
    tracker.event("actor_died", member="policy rank 0", what="https://me:open-sesame@host is gone")
    tracker.event("checkpoint", step=2)
    tracker.close({})
    events = json.loads(run.trace.read_text())
    rows = {event["tid"]: event["args"]["name"] for event in events if event["name"] == "thread_name"}
    instants = [(event["name"], rows[event["tid"]]) for event in events if event["ph"] == "i"]
    assert instants == [("actor_died", "policy rank 0"), ("checkpoint", "controller")]
    assert "open-sesame" not in run.trace.read_text()
    assert len(read_lines(run.events)) == 2


def test_phases_are_recorded_with_their_step(run: RunFolder) -> None:
    tracker = Tracker(run, RECIPE)
    timer = PhaseTimer(spans=tracker.timeline)
    with timer("step", 3), timer("rollout", 3):
        pass
    assert [(span.name, span.step) for span in tracker.timeline.take().spans] == [("rollout", 3), ("step", 3)]
    assert set(timer.metrics()) == {"time/step", "time/rollout"}


def test_a_timeline_that_cannot_be_written_is_one_event(run: RunFolder) -> None:
    run.trace.mkdir()
    tracker = Tracker(run, RECIPE)
    for _ in range(3):
        tracker.spans("node a", "policy rank 0", [SPAN])
    tracker.event("checkpoint", step=2)
    tracker.close({})
    assert [event["kind"] for event in read_lines(run.events)] == ["trace_failed", "checkpoint"]


def test_a_stage_without_spans_has_no_timeline(run: RunFolder) -> None:
    Tracker(run, RECIPE).close({})
    assert not run.trace.exists()
