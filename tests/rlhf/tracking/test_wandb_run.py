"""The real W&B, offline; and online against a port where nobody answers."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
from pathlib import Path

import pytest
import wandb
from wandb.proto.wandb_internal_pb2 import Record

from rlhf.config.schema import Recipe, TrackingConfig
from rlhf.errors import UserError
from rlhf.tracking import wandb_run
from rlhf.tracking.jsonl import read_lines
from rlhf.tracking.run_folder import RunFolder
from rlhf.tracking.tracker import Tracker
from rlhf.tracking.wandb_run import resolve_mode

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


def history_row(record: Record) -> dict[str, object]:
    return {item.key or item.nested_key[0]: json.loads(item.value_json) for item in record.history.item}


OFFLINE_RUN = """
import sys
from pathlib import Path
from rlhf.config.schema import Recipe, TrackingConfig
from rlhf.tracking.run_folder import RunFolder
from rlhf.tracking.tracker import SampleRow, Tracker
run = RunFolder.create(Path(sys.argv[1]), "ppo", "", "abc")
tracking = TrackingConfig(wandb="offline", project="trips", tags=("cpu",))
with Tracker(run, Recipe(name="demo", seed=3, tracking=tracking)) as tracker:
    tracker.log(1, {"objective/kl": 0.5, "loss": float("nan")})
    tracker.log(2, {"objective/kl": 0.75})
    tracker.samples(2, [SampleRow(prompt="p", response="r", score=1.0, kl=0.1, finish_reason="stop", weight_version=1)])
    tracker.close({"win_rate": 0.7})
"""


def test_an_offline_run_holds_config_metrics_summary_and_samples_in_silence(tmp_path: Path) -> None:
    command = [sys.executable, "-c", OFFLINE_RUN, str(tmp_path)]
    result = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    assert (result.stdout, result.stderr) == ("", "")
    run = RunFolder(tmp_path, "ppo")
    assert "wandb sync" in (run.logs / "wandb.log").read_text()
    assert [row["metrics"] for row in read_lines(run.events)] == [{"loss": "nan"}]

    records = read_run(run.path)
    started = next(record.run for record in records if record.HasField("run"))
    assert (started.project, started.display_name, started.run_group) == ("trips", "demo/ppo", "demo")
    assert (started.job_type, list(started.tags)) == ("ppo", ["cpu"])
    config = {item.key: json.loads(item.value_json) for item in started.config.update}
    assert config["seed"] == 3
    assert config["ppo"]["optimizer"]["betas"] == [0.9, 0.95]
    history = [history_row(record) for record in records if record.HasField("history")]
    assert [row["objective/kl"] for row in history if "objective/kl" in row] == [0.5, 0.75]
    assert not any("loss" in row for row in history)
    assert any(item.value_json == "0.7" for record in records for item in record.summary.update)
    (table,) = run.path.glob("wandb/offline-run-*/files/media/table/*.json")
    assert json.loads(table.read_text())["data"] == [[2, "p", "r", 1.0, 0.1, "stop", 1]]


def test_an_unreachable_server_costs_an_event_and_the_run_goes_on_offline(
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
