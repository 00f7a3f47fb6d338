"""Tests with the real W&B, offline, and online against a port without a server."""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import wandb
from wandb.proto.wandb_internal_pb2 import Record

from rlhf.config.schema import Recipe, TrackingConfig
from rlhf.errors import UserError
from rlhf.storage.jsonl import read_lines
from rlhf.tracking import wandb_run
from rlhf.tracking.run_folder import RunFolder
from rlhf.tracking.tracker import Tracker
from rlhf.tracking.wandb_run import resolve_mode

Offline = tuple[RunFolder, list[Record]]
KEY = "0123456789abcdef0123456789abcdef01234567"
DEAD_SERVER = "http://127.0.0.1:9"


@pytest.fixture(autouse=True)
def no_credentials(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    wandb.teardown()  # a run that another test started in this process would decide the mode of the next one
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_DIR", "WANDB_PROJECT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("WANDB_BASE_URL", DEAD_SERVER)


BLOCK, HEADER = 32768, 7


def read_run(folder: Path) -> list[Record]:
    """All records of the one offline run under ``folder``; the file is a LevelDB log of protocol buffers."""
    (file,) = folder.glob("wandb/offline-run-*/*.wandb")
    data, at, parts, records = file.read_bytes(), HEADER, b"", []
    while at + HEADER <= len(data):
        if BLOCK - at % BLOCK < HEADER:  # too little of the block is left for a record
            at += BLOCK - at % BLOCK
        _, length, kind = struct.unpack_from("<IHB", data, at)
        parts += data[at + HEADER : at + HEADER + length]
        at += HEADER + length
        if kind in (1, 4):  # a full record, or the last part of one
            records.append(Record.FromString(parts))
            parts = b""
    return records


def values_of(items: Iterable[Any]) -> dict[str, Any]:
    """Names and values; those of an object come one by one, with the way to each."""
    values: dict[str, Any] = {}
    for item in items:
        *way, last = item.nested_key or [item.key]
        inner = values
        for name in way:
            inner = inner.setdefault(name, {})
        inner[last] = json.loads(item.value_json)
    return values


def history_rows(records: list[Record]) -> list[dict[str, Any]]:
    return [values_of(record.history.item) for record in records if record.HasField("history")]


def summary_of(records: list[Record]) -> dict[str, Any]:
    return values_of(item for record in records for item in record.summary.update)


URL = "https://anna:pw@judge.example/score?api_key=t0ken"
OFFLINE_RUN = """
import sys
from collections.abc import Iterable
from pathlib import Path
import numpy as np
from rlhf.config.schema import AlertConfig, EndpointConfig, Recipe, RewardSourceConfig, TrackingConfig
from rlhf.tracking.histogram import Histogram
from rlhf.tracking.run_folder import RunFolder
from rlhf.tracking.samples import SampleRow
from rlhf.tracking.tracker import Tracker

def sample(score, pick="random"):
    return SampleRow(
        prompt="p", response="r", score=score, kl=0.1, advantage=0.5, finish_reason="stop", weight_version=1, pick=pick
    )

run = RunFolder.create(Path(sys.argv[1]), "ppo", "", "abc")
tracking = TrackingConfig(
    wandb="offline",
    project="trips",
    run_name="evening",
    group="trials",
    tags=("cpu",),
    table_every=2,
    table_rows=3,
    artifacts="checkpoints",
    alerts=AlertConfig(max_kl=0.6),
)
endpoint = EndpointConfig(url=sys.argv[2].partition("=")[2])
rewards = {"judge": RewardSourceConfig(endpoint=endpoint)}
with Tracker(run, Recipe(name="demo", seed=3, tracking=tracking, rewards=rewards)) as tracker:
    for step, kl in enumerate((0.5, 0.75)):
        tracker.log(step, {"objective/kl": kl, "objective/scores": 1.0 - step, "loss": float("nan")})
        tracker.samples(step, [sample(step + 0.5, "best"), sample(-1.0, "worst"), sample(0.0), sample(0.25)])
        tracker.histograms(step, {"histogram/scores": Histogram.of(np.array([0.0, 64.0, 64.0]))})
    for name in ("checkpoints/step_2", "model"):
        (run.path / name).mkdir(parents=True)
        (run.path / name / "weights").write_text(name)
    tracker.checkpoint(2, 7, run.checkpoints / "step_2", 0.5)
    tracker.close({"win_rate": 0.7})
"""


@pytest.fixture(scope="module")
def offline_run(tmp_path_factory: pytest.TempPathFactory) -> Offline:
    """A full run of a command with credentials in its arguments, and the files that W&B wrote."""
    folder = tmp_path_factory.mktemp("offline")
    command = [sys.executable, "-c", OFFLINE_RUN, str(folder), f"rewards.judge.endpoint.url={URL}"]
    hidden = ("WANDB_API_KEY", "WANDB_MODE", "WANDB_DIR", "WANDB_PROJECT")
    environment = {name: value for name, value in os.environ.items() if name not in hidden}
    environment |= {"NETRC": str(folder / "netrc"), "WANDB_BASE_URL": DEAD_SERVER}
    environment |= {f"WANDB_{name}_DIR": str(folder / name) for name in ("DATA", "CACHE", "CONFIG", "ARTIFACT")}
    result = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120, env=environment)
    assert (result.stdout, result.stderr) == ("", "")
    run = RunFolder(folder, "ppo")
    return run, read_run(run.path)


def test_an_offline_run_is_silent_and_has_its_name_group_tags_and_nested_configuration(offline_run: Offline) -> None:
    run, records = offline_run
    assert "wandb sync" in (run.logs / "wandb.log").read_text()
    assert {event["kind"] for event in read_lines(run.events)} == {"metric_not_finite", "alert", "checkpoint"}
    started = next(record.run for record in records if record.HasField("run"))
    assert (started.project, started.display_name, started.run_group) == ("trips", "evening/ppo", "trials")
    assert (started.job_type, list(started.tags)) == ("ppo", ["cpu"])
    config = {item.key: json.loads(item.value_json) for item in started.config.update}
    assert config["seed"] == 3
    assert config["ppo"]["optimizer"]["betas"] == [0.9, 0.95]
    assert config["tracking"]["alerts"]["max_kl"] == 0.6
    assert config["rewards"]["judge"]["endpoint"]["url"] == "https://***@judge.example/score?api_key=***"


def test_no_secret_of_the_command_line_is_in_any_file_that_is_uploaded(offline_run: Offline) -> None:
    run, _ = offline_run
    (folder,) = run.path.glob("wandb/offline-run-*")
    files = [file for file in folder.rglob("*") if file.is_file()]
    assert [file for file in files if b"t0ken" in file.read_bytes() or b"anna:pw" in file.read_bytes()] == []
    assert any(b"judge.example" in file.read_bytes() for file in files)


def test_metrics_and_summary(offline_run: Offline) -> None:
    history, summary = history_rows(offline_run[1]), summary_of(offline_run[1])
    assert [row["objective/kl"] for row in history if "objective/kl" in row] == [0.5, 0.75]
    assert not any("loss" in row for row in history)
    expected = {"win_rate": 0.7, "best_score": 1.0, "best_score_step": 0, "final_kl": 0.75, "steps": 2}
    expected |= {"exit_code": 0, "exit_reason": "done"}
    assert {name: summary[name] for name in expected} == expected


def test_samples_are_tables_of_the_best_the_worst_and_random_ones(offline_run: Offline) -> None:
    run, records = offline_run
    logged = {name: row[name] for row in history_rows(records) for name in row if name.startswith("samples")}
    tables = {}
    for name, value in logged.items():
        (file,) = run.path.glob(f"wandb/offline-run-*/files/{value['path']}")
        tables[name] = json.loads(file.read_text())
    columns = ["which", "step", "prompt", "response", "score", "kl", "advantage", "finish_reason", "weight_version"]
    assert tables["samples"]["columns"] == columns
    assert [row[:2] + row[4:6] for row in tables["samples"]["data"]][:2] == [
        ["best", 1, 1.5, 0.1],
        ["worst", 1, -1.0, 0.1],
    ]
    assert [row[0] for row in tables["samples"]["data"]] == ["best", "worst", "random"]
    assert len(tables["samples_of_all_steps"]["data"]) == 8


def test_histograms_have_the_counts_of_the_actor(offline_run: Offline) -> None:
    shown = [row["histogram/scores"] for row in history_rows(offline_run[1]) if "histogram/scores" in row]
    assert len(shown) == 2
    assert (shown[0]["_type"], shown[0]["values"]) == ("histogram", [1] + [0] * 62 + [2])
    assert shown[0]["bins"] == [float(i) for i in range(65)]


def test_alerts_and_artifacts_are_there(offline_run: Offline) -> None:
    _, records = offline_run
    (alert,) = [record.alert for record in records if record.HasField("alert")]
    assert (alert.title, alert.level) == ("KL is high", "WARN")
    assert alert.text == "step 1: objective/kl is 0.75 nats per response, above 0.6"
    artifacts = [record.artifact for record in records if record.HasField("artifact")]
    own = [a for a in artifacts if a.type != "run_table"]  # a table is one too
    assert [(a.type, a.name, sorted(a.aliases)) for a in own] == [
        ("checkpoint", "demo-ppo-checkpoint", ["latest", "step_2"]),
        ("model", "demo-ppo-model", ["latest"]),
    ]
    assert [entry.path for a in own for entry in a.manifest.contents] == ["weights", "weights"]


ENDING_RUN = """
import sys
from collections.abc import Iterable
from pathlib import Path
from rlhf.config.schema import Recipe, TrackingConfig
from rlhf.errors import Stopped
from rlhf.tracking.run_folder import RunFolder
from rlhf.tracking.tracker import Tracker
run = RunFolder.create(Path(sys.argv[1]), "ppo", "", "abc")
with Tracker(run, Recipe(name="demo", tracking=TrackingConfig(wandb="offline"))) as tracker:
    tracker.log(0, {"objective/kl": 0.5})
    raise Stopped("SIGTERM")
"""


def test_a_stopped_run_of_a_sweep_has_the_sweeps_name_and_its_reason(tmp_path: Path) -> None:
    environment = {**os.environ, "WANDB_SWEEP_ID": "sw33p", "WANDB_RUN_ID": "r1", "WANDB_MODE": "offline"}
    command = [sys.executable, "-c", ENDING_RUN, str(tmp_path)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment, check=False)
    assert "Stopped: " in ended.stderr
    run = RunFolder(tmp_path, "ppo")
    records = read_run(run.path)
    started = next(record.run for record in records if record.HasField("run"))
    assert (started.run_id, started.sweep_id) == ("r1", "sw33p")
    assert (run.path / wandb_run.ID).read_text() == "r1\n"
    assert summary_of(records)["exit_reason"].startswith("Stopped: stopped on request (SIGTERM)")
    assert [record.alert.title for record in records if record.HasField("alert")] == ["The run was stopped"]
    assert any(record.HasField("preempting") for record in records)
    assert [record.exit.exit_code for record in records if record.HasField("exit")] == [75]


def test_an_unreachable_server_is_an_event_and_the_run_continues_offline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setattr(wandb_run, "INIT_TIMEOUT_SECONDS", 1.0)
    run = RunFolder.create(tmp_path / "demo", "sft", "", "abc")
    with Tracker(run, Recipe(name="demo")) as tracker:
        tracker.log(1, {"train/loss": 0.5})
    (event,) = read_lines(run.events)
    assert (event["kind"], event["doing"]) == ("wandb_failed", "start online")
    assert read_lines(run.metrics) == [{"step": 1, "train/loss": 0.5}]
    assert list(run.path.glob("wandb/offline-run-*/*.wandb"))
    for file in run.path.rglob("*"):
        assert not file.is_file() or KEY.encode() not in file.read_bytes()


DYING_RUN = """
import os, signal, sys
from pathlib import Path
import psutil
from rlhf.config.schema import Recipe, TrackingConfig
from rlhf.tracking.run_folder import RunFolder
from rlhf.tracking.tracker import Tracker
run = RunFolder.create(Path(sys.argv[1]), "ppo", "", "abc")
with Tracker(run, Recipe(name="demo", tracking=TrackingConfig(wandb="offline"))) as tracker:
    tracker.log(1, {"loss": 1.0})
    [service] = [child for child in psutil.Process().children() if "wandb" in child.name()]
    service.kill()
    service.wait()
    for step in (2, 3):
        tracker.log(step, {"loss": 1.0})
    tracker.close({"win_rate": 0.7})
"""


def test_a_service_that_dies_costs_an_event_and_nothing_of_the_record(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-c", DYING_RUN, str(tmp_path)], check=True, timeout=120)
    run = RunFolder(tmp_path, "ppo")
    [event] = read_lines(run.events)
    assert event["kind"] == "wandb_failed"
    assert [row["step"] for row in read_lines(run.metrics)] == [1, 2, 3]


def test_disabled_does_not_even_import_wandb(tmp_path: Path) -> None:
    script = f"""
import sys
from collections.abc import Iterable
from pathlib import Path
from rlhf.config.schema import Recipe, TrackingConfig
from rlhf.tracking.run_folder import RunFolder
from rlhf.tracking.tracker import Tracker
run = RunFolder.create(Path({str(tmp_path)!r}), "sft", "", "abc")
with Tracker(run, Recipe(name="demo", tracking=TrackingConfig(wandb="disabled"))) as tracker:
    tracker.log(1, {{"train/loss": 0.5}})
sys.exit("wandb" in sys.modules)
"""
    assert subprocess.run([sys.executable, "-c", script], check=False, timeout=60).returncode == 0
    assert not (tmp_path / "sft" / "wandb").exists()


# That a key makes ``auto`` online is seen above, where the server is not there.
@pytest.mark.parametrize(
    ("asked", "variable", "key", "mode"),
    [
        ("auto", None, None, "offline"),
        ("auto", None, "not a key", "offline"),
        ("auto", "offline", KEY, "offline"),
        ("auto", "disabled", KEY, "disabled"),
        ("offline", None, KEY, "offline"),
    ],
)
def test_mode(monkeypatch: pytest.MonkeyPatch, asked: str, variable: str | None, key: str | None, mode: str) -> None:
    if variable:
        monkeypatch.setenv("WANDB_MODE", variable)
    if key:
        monkeypatch.setenv("WANDB_API_KEY", key)
    assert resolve_mode(TrackingConfig(wandb=asked)) == mode


def test_online_without_a_key_is_refused() -> None:
    with pytest.raises(UserError, match="no API key") as caught:
        resolve_mode(TrackingConfig(wandb="online"))
    assert "wandb login" in caught.value.fix
