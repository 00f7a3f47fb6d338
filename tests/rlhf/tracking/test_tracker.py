from __future__ import annotations

import json
from pathlib import Path

import pytest

from rlhf.config.schema import AlertConfig, Recipe, TrackingConfig
from rlhf.storage.jsonl import read_lines
from rlhf.tracking.lost_rows import LostRows
from rlhf.tracking.run_folder import RunFolder
from rlhf.tracking.tracker import Tracker
from tests.rlhf.tracking.rows import sample

RECIPE = Recipe(name="demo", tracking=TrackingConfig(wandb="disabled"))
ROW = sample("p", "[red]r\n")


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    return RunFolder.create(tmp_path / "demo", "ppo", "", "abc")


def test_metrics_and_samples_are_on_disk_at_once(run: RunFolder) -> None:
    tracker = Tracker(run, RECIPE)
    tracker.log(1, {"objective/kl": 0.5, "weights/version": 2})
    tracker.samples(1, [ROW])
    assert run.metrics.read_text() == '{"step": 1, "objective/kl": 0.5, "weights/version": 2}\n'
    assert read_lines(run.samples) == [
        {
            "step": 1,
            "prompt": "p",
            "response": "[red]r\n",
            "score": 0.5,
            "kl": 1.25,
            "advantage": -0.5,
            "finish_reason": "stop",
            "weight_version": 3,
            "pick": "random",
        }
    ]


def test_a_number_that_is_not_finite_is_null_and_an_event(run: RunFolder) -> None:
    Tracker(run, RECIPE).log(7, {"loss": float("nan"), "kl": float("-inf"), "lr": 0.1})
    assert json.loads(run.metrics.read_text()) == {"step": 7, "loss": None, "kl": None, "lr": 0.1}
    (event,) = read_lines(run.events)
    assert event.pop("time").endswith("+00:00")
    assert event == {"kind": "metric_not_finite", "step": 7, "metrics": {"loss": "nan", "kl": "-inf"}}


def test_an_error_is_not_swallowed_by_the_tracker(run: RunFolder) -> None:
    with pytest.raises(KeyError), Tracker(run, RECIPE):
        raise KeyError


def test_an_alert_is_an_event_once_even_after_a_resume(run: RunFolder) -> None:
    recipe = Recipe(name="demo", tracking=TrackingConfig(wandb="disabled", alerts=AlertConfig(max_kl=2.0)))
    for steps in ((0, 1), (2, 3)):
        tracker = Tracker(run, recipe)
        for step in steps:
            tracker.log(step, {"objective/kl": 3.0 * step})
    [event] = [event for event in read_lines(run.events) if event["kind"] == "alert"]
    assert (event["alert"], event["step"]) == ("kl", 1)
    assert event["message"].startswith("step 1: objective/kl is 3 nats")


def test_a_checkpoint_is_an_event(run: RunFolder) -> None:
    Tracker(run, RECIPE).checkpoint(5, 1024, run.checkpoints / "step_5", 1.23456)
    (event,) = read_lines(run.events)
    assert {name: event[name] for name in ("kind", "step", "bytes", "seconds", "path")} == {
        "kind": "checkpoint",
        "step": 5,
        "bytes": 1024,
        "seconds": 1.235,
        "path": str(run.checkpoints / "step_5"),
    }


def test_a_record_that_is_deleted_while_the_run_goes_on_is_begun_anew_with_one_warning(run: RunFolder) -> None:
    shown = list[str]()
    tracker = Tracker(run, RECIPE, shown.append)
    for step in range(4):
        if step == 2:
            run.metrics.unlink()
            run.samples.unlink()
        tracker.log(step, {"loss": 0.5})
        tracker.samples(step, [ROW])
    assert [row["step"] for row in read_lines(run.metrics)] == [2, 3]
    assert [row["step"] for row in read_lines(run.samples)] == [2, 3]
    lost = [event for event in read_lines(run.events) if event["kind"] == "record_lost"]
    assert [(event["file"], event["before_step"]) for event in lost] == [(str(run.metrics), 2), (str(run.samples), 2)]
    assert shown == [event["message"] for event in lost]
    assert "the rows of steps 0 to 1 are lost" in shown[0]
    for rows in run.rewind({"metrics.jsonl": 999, "samples.jsonl": 999}, 2):
        tracker.lost(rows)
    assert len(shown) == 2, "it was told before"
    resumed = Tracker(run, RECIPE, shown.append)
    for file in (run.metrics, run.samples):
        resumed.lost(LostRows(file=file, before=2))
    assert len(shown) == 2, "an earlier command told of it"


def test_deleted_events_are_begun_anew_with_a_warning(run: RunFolder) -> None:
    tracker = Tracker(run, RECIPE)
    tracker.event("one")
    run.events.unlink()
    tracker.event("two")
    tracker.event("three")
    assert [event["kind"] for event in read_lines(run.events)] == ["record_lost", "two", "three"]


def test_a_deleted_timeline_is_begun_anew_as_a_whole_file(run: RunFolder) -> None:
    tracker = Tracker(run, RECIPE)
    tracker.event("one")
    run.trace.unlink()
    tracker.event("two")
    tracker.close({})
    assert [event["name"] for event in json.loads(run.trace.read_text()) if event["ph"] == "i"] == ["two"]
