"""Real event files, read back by TensorBoard itself."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from rlhf.config.schema import EndpointConfig, Recipe, RewardSourceConfig, TrackingConfig
from rlhf.storage.jsonl import read_lines
from rlhf.tracking.histogram import Histogram
from rlhf.tracking.run_folder import RunFolder
from rlhf.tracking.tensorboard_run import FOLDER
from rlhf.tracking.tracker import Tracker
from tests.rlhf.tracking.rows import sample

RECIPE = Recipe(
    name="demo",
    tracking=TrackingConfig(wandb="disabled", tensorboard=True, table_every=2),
    rewards={"judge": RewardSourceConfig(endpoint=EndpointConfig(url="http://anna:pw@host/score"))},
)
ROW = sample("<b>p</b>", "# r\n\n![x](y)")


def read(folder: Path) -> EventAccumulator:
    events = EventAccumulator(str(folder / FOLDER), size_guidance={"scalars": 0, "histograms": 0, "tensors": 0})
    events.Reload()
    return events


def texts(events: EventAccumulator, name: str) -> list[str]:
    return [event.tensor_proto.string_val[0].decode() for event in events.Tensors(f"{name}/text_summary")]


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    return RunFolder.create(tmp_path / "demo", "ppo", "", "abc")


def test_scalars_histograms_samples_configuration_and_summary(run: RunFolder) -> None:
    values = np.array([0.0, 64.0, 64.0])
    with Tracker(run, RECIPE) as tracker:
        for step in (0, 1):
            tracker.log(step, {"objective/kl": 0.5 + step, "loss": float("nan")})
            tracker.samples(step, [ROW])
        tracker.histograms(1, {"histogram/scores": Histogram.of(values)})  # type: ignore[dict-item]
        tracker.close({"win_rate": 0.7})
    events = read(run.path)
    assert [(event.step, event.value) for event in events.Scalars("objective/kl")] == [(0, 0.5), (1, 1.5)]
    assert events.Tags()["scalars"] == ["objective/kl"]
    (histogram,) = events.Histograms("histogram/scores")
    value = histogram.histogram_value
    assert (histogram.step, value.num, value.sum, value.sum_squares) == (1, 3.0, 128.0, 8192.0)
    assert (value.bucket[0], value.bucket[-1], value.bucket_limit[-1]) == (1.0, 2.0, 64.0)
    (shown,) = texts(events, "samples")
    assert all(line.startswith("    ") for line in shown.splitlines() if line), "a model's text was taken for a mark"
    assert '"response": "# r\\n\\n![x](y)"' in shown
    config = json.loads(texts(events, "config")[0])
    assert config["ppo"]["steps"] == 100
    assert config["rewards"]["judge"]["endpoint"]["url"] == "http://***@host/score"
    summary = json.loads(texts(events, "summary")[0])
    assert {"win_rate": 0.7, "final_kl": 1.5, "exit_reason": "done"}.items() <= summary.items()


def test_a_resumed_run_shows_each_step_once(run: RunFolder) -> None:
    first = Tracker(run, RECIPE)
    for step in range(4):
        first.log(step, {"objective/kl": float(step)})
    first.close({}, 75, "stopped")
    lines = run.metrics.read_text().splitlines(keepends=True)
    run.metrics.write_text("".join(lines[:2]))  # as it is cut back to the last checkpoint
    with Tracker(run, RECIPE) as second:
        second.log(2, {"objective/kl": 20.0})
    assert [(e.step, e.value) for e in read(run.path).Scalars("objective/kl")] == [(0, 0.0), (1, 1.0), (2, 20.0)]


def test_a_folder_that_cannot_be_written_costs_an_event_and_nothing_of_the_record(run: RunFolder) -> None:
    (run.path / FOLDER).write_text("in the way")
    with Tracker(run, RECIPE) as tracker:
        tracker.log(0, {"objective/kl": 0.5})
    (event,) = read_lines(run.events)
    assert (event["kind"], event["doing"]) == ("tensorboard_failed", "start")
    assert read_lines(run.metrics) == [{"step": 0, "objective/kl": 0.5}]


def test_without_it_there_is_no_folder(run: RunFolder) -> None:
    with Tracker(run, Recipe(name="demo", tracking=TrackingConfig(wandb="disabled"))) as tracker:
        tracker.log(0, {"objective/kl": 0.5})
    assert not (run.path / FOLDER).exists()
