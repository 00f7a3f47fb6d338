"""Tests of how a stage's end is recorded, by the main thread or in its place, and from where the command resumes."""

from __future__ import annotations

import errno
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from actors.pipeline import _recorded_errors, with_seconds
from actors.session import Session
from rlhf.config.schema import CheckpointConfig, Recipe
from rlhf.errors import CanaryError, ClusterError, MachineryError, RLHFError, Stopped, Unsaved
from rlhf.recovery.last_resort import LastResort, unrecorded
from rlhf.recovery.stop import StopRequest, saved
from rlhf.storage.jsonl import append_line
from rlhf.tracking.console import Console
from rlhf.tracking.run_folder import RunFolder


class Stage:
    """A stage of a session, and the events that it has recorded."""

    def __init__(self, folder: Path) -> None:
        self.session = Session(recipe=Recipe(name="x"), console=Console(sys.stdout), device="cpu", gpus=0)
        self.session.last_resort = LastResort(lambda code: None)
        self.session.stop = StopRequest(CheckpointConfig(), started=0.0, clock=lambda: 0.0, environment={})
        self.run, self.events = RunFolder(folder, "ppo"), list[dict[str, Any]]()

    def commit(self, step: int) -> Path:
        folder = self.run.checkpoints / f"step_{step}"
        folder.mkdir(parents=True)
        return folder

    def fails(self, error: Exception) -> RLHFError:
        """The error that comes out if the stage raises this one."""
        tracker: Any = SimpleNamespace(event=lambda kind, **details: self.events.append({"kind": kind, **details}))
        with pytest.raises(RLHFError) as caught, _recorded_errors(self.session, tracker, self.run):
            raise error
        return caught.value


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    stage = Stage(tmp_path)
    stop = stage.session.stop
    assert stop is not None
    stop.unsaved = lambda: "the checkpoint after step 1 is not complete"
    yield stage
    stage.session.end_stage()
    assert stage.session.last_resort.record is unrecorded and stop.unsaved is saved


def test_a_full_disk_names_the_file_that_could_not_be_written(stage: Stage) -> None:
    stage.run.path.mkdir()
    stage.run.metrics.symlink_to("/dev/full")
    try:
        append_line(stage.run.metrics, {"step": 1})
    except OSError as error:
        full = str(stage.fails(error))
    assert full.startswith(f"{stage.run.metrics} cannot be written: No space left on device (") and " free). " in full
    assert "Free space there, or remove files" in full and full.endswith("it starts this stage again.")
    stage.commit(2)
    told = str(stage.fails(OSError(errno.ENOSPC, "No space left on device")))
    assert told.endswith("it resumes from the last checkpoint.")
    told = str(stage.fails(OSError(errno.EROFS, "Read-only file system", "/runs/x/status.json")))
    assert told.startswith("/runs/x/status.json cannot be written: Read-only file system. The file system is mounted")
    assert str(stage.fails(OSError(errno.EIO, "I/O error"))).startswith(f"{stage.run.path} cannot be written or read")


def test_a_stop_names_the_last_checkpoint_also_one_of_an_earlier_command(stage: Stage) -> None:
    stage.commit(4)
    last = stage.commit(12)
    told = stage.fails(Stopped("SIGTERM"))
    assert str(told) == f"stopped on request (SIGTERM); the last checkpoint is {last}, the same command resumes from it"
    [event] = stage.events
    assert (event["kind"], event["exit_code"], event["message"]) == ("stopped", 75, str(told))


def test_a_stop_without_any_checkpoint_names_the_stage(stage: Stage) -> None:
    (stage.run.checkpoints / "step_3.partial").mkdir(parents=True)
    assert "no checkpoint of the ppo stage exists yet" in str(stage.fails(Stopped("SIGTERM")))


def test_a_stop_that_knows_its_checkpoint_keeps_it(stage: Stage) -> None:
    stage.commit(12)
    assert "the last checkpoint is elsewhere," in str(stage.fails(Stopped("SIGTERM", "elsewhere")))


@pytest.mark.parametrize("kind", [ClusterError, Unsaved])
def test_a_failure_after_which_the_same_command_resumes_says_from_where(kind: type[RLHFError], stage: Stage) -> None:
    told = stage.fails(kind("It failed."))
    assert str(told) == "It failed. The same command starts the ppo stage again." and isinstance(told, kind)
    last = stage.commit(2)
    told = stage.fails(kind("It failed."))
    assert str(told) == f"It failed. The same command resumes from the last checkpoint, {last}."
    assert [event["message"].startswith("It failed. The") for event in stage.events] == [True, True]
    assert {(event["kind"], event["error"], event["exit_code"]) for event in stage.events} == {
        ("failed", kind.__name__, 3)
    }


@pytest.mark.parametrize("error", [CanaryError("KL"), MachineryError("a rank")])
def test_other_errors_are_recorded_as_they_are(error: RLHFError, stage: Stage) -> None:
    stage.commit(2)
    assert stage.fails(error) is error
    assert stage.events == [
        {
            "kind": "failed",
            "error": type(error).__name__,
            "exit_code": 3,
            "requeue": error.may_pass,
            "message": str(error),
        },
    ]


def test_what_ends_the_process_in_the_main_threads_place_is_recorded_the_same_way(stage: Stage) -> None:
    last = stage.commit(2)
    tracker: Any = SimpleNamespace(event=lambda kind, **details: stage.events.append({"kind": kind, **details}))
    with _recorded_errors(stage.session, tracker, stage.run):
        told = stage.session.last_resort.record(Unsaved("It took too long."))
    assert str(told) == f"It took too long. The same command resumes from the last checkpoint, {last}."
    assert [event["message"] for event in stage.events] == [str(told)]


def test_the_summary_of_a_resumed_stage_says_which_seconds_are_of_all_its_commands() -> None:
    summary: dict[str, float | str] = {"goodput": 0.5, "seconds, update": 20.0}
    assert with_seconds(summary, 7.0, resumes=False) == {**summary, "seconds in all": 7.0}
    assert with_seconds(summary, 7.0, resumes=True) == {
        "goodput": 0.5, "seconds of all commands, update": 20.0, "seconds of this command": 7.0
    }  # fmt: skip
