from __future__ import annotations

import json
from pathlib import Path

import pytest

from rlhf.config.schema import AlertConfig, Recipe, TrackingConfig
from rlhf.storage.jsonl import read_lines
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
