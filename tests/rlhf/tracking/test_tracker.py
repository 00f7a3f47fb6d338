from __future__ import annotations

import json
from pathlib import Path

import pytest

from rlhf.config.schema import Recipe, TrackingConfig
from rlhf.tracking.jsonl import read_lines
from rlhf.tracking.run_folder import RunFolder
from rlhf.tracking.tracker import SampleRow, Tracker

RECIPE = Recipe(name="demo", tracking=TrackingConfig(wandb="disabled"))
ROW = SampleRow(prompt="p", response="[red]r\n", score=0.5, kl=1.25, finish_reason="stop", weight_version=3)


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
            "finish_reason": "stop",
            "weight_version": 3,
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
