"""State and end of runs, read from their folders."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

import psutil
import pytest

from launch.watch.folder import SILENT_SECONDS, FolderWatch, Stage, WatchedFolder
from launch.watch.holder import holder_of
from launch.watch.view import RunView, history, phases, rates
from rlhf.storage.folder_lock import FolderLock, heartbeat_of
from tests.launch.watch.pretend import MEMBERS, Pretend


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "demo"


def poll(root: Path) -> RunView:
    view = FolderWatch(WatchedFolder.of(root)).poll()
    assert view is not None
    return view


def test_a_run_in_progress(root: Path) -> None:
    run = Pretend(root, steps=4)
    run.step(0)
    run.step(1)
    run.status("score", 2, since=time.time() - 7)
    view = poll(root)
    assert (view.title, view.stage, view.phase, view.step) == ("demo", "ppo", "score", 2)
    assert view.phase_seconds == pytest.approx(7, abs=1)
    assert (view.done, view.steps, view.seconds_left) == (2, 4, 4.0)  # 2 s a step
    assert [member.name for member in view.members] == list(MEMBERS)
    assert view.members[0].node == "10.0.0.1"
    assert view.members[0].heartbeat_age == pytest.approx(3, abs=1)
    assert history(view) == {"score": [0.0, 0.25], "KL": [0.0, 0.5], "length": [20.0, 20.0]}
    assert rates(view) == {"samples/s": 16.0}
    assert phases(view) == {"rollout": 1.5, "update": 0.5}
    assert view.ending is None
    assert view.warning == ""


def test_the_remaining_steps_take_as_long_as_the_last_ones_with_what_is_between_them(root: Path) -> None:
    """Twenty slow steps, then ten of 2 s, after each of which saving and evaluation take 3 s; ten are left."""
    run = Pretend(root, steps=40)
    for step in range(30):
        seconds = {"time/step": 100.0 if step < 20 else 2.0, "time/checkpoint": 1.0, "time/judge": 2.0}
        run.step(step, **seconds)
    assert poll(root).seconds_left == pytest.approx(10 * 5)


def test_a_stage_whose_steps_depend_on_the_data_reports_their_number(root: Path) -> None:
    run = Pretend(root, "sft", steps=120)
    run.step(38)
    run.step(39)
    assert (poll(root).done, poll(root).steps, poll(root).seconds_left) == (40, None, None)
    run.status("update", 40)
    assert (poll(root).done, poll(root).steps, poll(root).seconds_left) == (40, 120, 160.0)  # 2 s a step


def test_the_recipe_tells_ppos_steps_before_it_has_begun_and_the_run_itself_later(root: Path) -> None:
    run = Pretend(root, steps=4)
    assert poll(root).steps == 4
    run.steps = 5
    run.status("rollout", 0)
    assert poll(root).steps == 5


def test_the_seconds_of_a_phase_go_on_when_a_member_changes(root: Path) -> None:
    run, now = Pretend(root), time.time()
    watch = FolderWatch(WatchedFolder.of(root), lambda: now + 10)
    run.status("update", 3, since=now)
    watch.poll()
    run.status("update", 3, dead="critic rank 0", since=now + 5)
    view = watch.poll()
    assert view is not None
    assert view.phase_seconds == pytest.approx(10)
    assert view.members[2].state == "dead"


def test_looking_changes_nothing(root: Path) -> None:
    run = Pretend(root)
    run.step(0)
    run.status("rollout", 1)
    before = {path: path.stat().st_mtime_ns for path in root.rglob("*")}
    poll(root)
    assert {path: path.stat().st_mtime_ns for path in root.rglob("*")} == before


def test_a_value_that_was_not_finite_is_a_gap(root: Path) -> None:
    run = Pretend(root)
    run.step(0)
    run.step(1, **{"objective/scores": None})
    assert history(poll(root))["score"] == [0.0, None]


def test_what_is_half_written_is_left_out(root: Path) -> None:
    run = Pretend(root)
    run.step(0)
    with run.run.metrics.open("a") as file:
        file.write('{"step": 1, "objective/sco')
    (run.run.path / "status.json").write_text('{"phase": "upd')
    (run.run.path / "config.yaml").write_text("ppo: {steps: [")
    view = poll(root)
    assert (view.done, view.phase, view.steps, view.members) == (1, "", None, ())


@pytest.mark.parametrize(
    "text", ['{"members": [1]}', '{"members": {"a": 3}}', "[]", '{"phase": 3, "since": "x", "steps": "y"}']
)
def test_a_strange_status_is_no_error(root: Path, text: str) -> None:
    run = Pretend(root)
    (run.run.path / "status.json").write_text(text)
    assert poll(root).members == ()


def test_a_run_ends_when_its_last_stage_is_finished_and_its_process_is_gone(root: Path) -> None:
    run = Pretend(root)
    run.step(0)
    run.run.finish({})
    assert poll(root).ending is None  # this process lives: another stage may follow
    view = poll(root)
    assert (view.finished, view.members) == (("ppo",), ()), "its actors have ended with it"
    stage = poll(root / "ppo").ending
    assert stage is not None and stage.good
    (root / ".ppo.lock").write_text(f"process {_dead()} on {os.uname().nodename}\n")
    ending = poll(root).ending
    assert ending is not None and ending.good
    assert ending.text.startswith("ppo finished ")


def test_a_run_on_another_machine_ends_when_nothing_follows_its_last_stage(root: Path) -> None:
    run = Pretend(root)
    run.step(0)
    run.run.finish({})
    (root / ".ppo.lock").write_text("process 1 on elsewhere\n")
    assert poll(root).ending is None, "another stage may follow"
    later = FolderWatch(WatchedFolder.of(root), lambda: time.time() + SILENT_SECONDS + 5).poll()
    assert later is not None and later.ending is not None and later.ending.good


def test_a_failed_run_reports_the_reason(root: Path) -> None:
    run = Pretend(root)
    run.event("failed", error="MachineryError", exit_code=3, message="critic rank 0 died\n  \x1b[31mtwice")
    ending = poll(root).ending
    assert ending is not None and not ending.good
    assert ending.text == "ppo failed, exit code 3: critic rank 0 died [31mtwice"


def test_a_resumed_run_has_not_ended(root: Path) -> None:
    run = Pretend(root)
    run.event("stopped", exit_code=75, message="on request")
    assert poll(root).ending is not None
    os.utime(root / ".ppo.lock", (time.time() + 5, time.time() + 5))  # the same command takes the folder again
    assert poll(root).ending is None


def test_a_missing_process_is_reported(root: Path) -> None:
    run = Pretend(root)
    run.status("update", 5)
    (run.run.checkpoints / "step_9").mkdir(parents=True)
    (run.run.checkpoints / "step_10").mkdir()
    (root / ".ppo.lock").write_text(f"process {_dead()} on {os.uname().nodename}\n")
    ending = poll(root).ending
    assert ending is not None and not ending.good
    assert "ended without a message: last seen in update of step 5 0:0" in ending.text
    assert ending.text.endswith("The same command resumes from checkpoints/step_10")


def test_a_lost_run_is_watched_until_the_same_command_takes_its_folder(root: Path) -> None:
    """It takes some seconds to get there; the members of the lost one are gone at once, and are not the new one's."""
    run, clock = Pretend(root), [time.time()]
    watch = FolderWatch(WatchedFolder.of(root), lambda: clock[0], patience=30.0)

    def view() -> RunView:
        found = watch.poll()
        assert found is not None
        return found

    run.step(0)
    run.status("update", 1)
    (run.run.checkpoints / "step_1").mkdir(parents=True)
    assert {member.state for member in view().members} == {"serving"}
    lock = root / ".ppo.lock"
    lock.write_text(f"process {_dead()} on {os.uname().nodename}\n")
    os.utime(lock, (clock[0] - 60, clock[0] - 60))
    found = view()
    assert found.ending is None and {member.state for member in found.members} == {"gone"}
    assert "The same command resumes from checkpoints/step_1; watched for 30 s more" in found.warning
    clock[0] += 29
    assert view().ending is None
    lock.write_text(f"process {os.getpid()} on {os.uname().nodename}\n")
    os.utime(lock, (clock[0], clock[0]))
    found = view()
    assert (found.ending, found.warning, found.members, found.phase) == (None, "", (), "")
    clock[0] += 60
    lock.write_text(f"process {_dead()} on {os.uname().nodename}\n")
    assert view().ending is None, "another process: it is watched as long"
    clock[0] += 31
    ending = view().ending
    assert ending is not None and "ended without a message" in ending.text
    assert poll(root).ending is not None, "a single picture does not wait"


def test_the_members_of_a_failed_run_are_gone(root: Path) -> None:
    run = Pretend(root)
    run.status("update", 1)
    run.event("failed", error="MachineryError", exit_code=3, message="critic rank 0 died")
    assert {member.state for member in poll(root).members} == {"gone"}


def test_a_process_with_the_number_of_one_that_is_gone_is_another(root: Path) -> None:
    Pretend(root)
    other = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    try:
        lock = root / ".ppo.lock"
        lock.write_text(f"process {other.pid} on {os.uname().nodename}\n")
        holder = holder_of(root, "ppo")
        assert holder is not None and holder.alive is True
        os.utime(lock, (time.time() - 3600, time.time() - 3600))
        holder = holder_of(root, "ppo")
        assert holder is not None and holder.alive is False
    finally:
        other.kill()
        other.wait()


def test_a_process_is_the_same_where_the_clock_of_files_is_a_little_behind(root: Path) -> None:
    Pretend(root)
    lock, began = root / ".ppo.lock", psutil.Process().create_time()
    lock.write_text(f"process {os.getpid()} on {os.uname().nodename}\n")
    for behind, is_alive in ((1.0, True), (60.0, False)):
        os.utime(lock, (began - behind, began - behind))
        holder = holder_of(root, "ppo")
        assert holder is not None and holder.alive is is_alive


def test_a_process_of_another_machine_cannot_be_seen(root: Path) -> None:
    run = Pretend(root)
    run.step(0)
    (root / ".ppo.lock").write_text("process 1 on elsewhere\n")
    assert poll(root).warning == ""
    later = FolderWatch(WatchedFolder.of(root), lambda: time.time() + SILENT_SECONDS + 5).poll()
    assert later is not None and later.ending is None
    assert "nothing new for 2:0" in later.warning
    assert "whether process 1 on elsewhere is alive cannot be seen from here" in later.warning


def test_the_heartbeat_of_a_process_on_another_machine_is_seen(root: Path) -> None:
    run = Pretend(root)
    run.run.release()
    lock = FolderLock.take(root / ".ppo.lock", machine="elsewhere/boot")

    def alive() -> bool | None:
        holder = holder_of(root, "ppo")
        assert holder is not None and holder.name == f"process {os.getpid()} on elsewhere"
        return holder.alive

    beat = heartbeat_of(lock.path, lock.record)
    assert alive() is True
    os.utime(beat, (time.time() - 3600, time.time() - 3600))
    assert alive() is None
    lock.release()
    assert alive() is False


def test_the_stage_that_is_written_to_is_shown(root: Path) -> None:
    Pretend(root, "sft").run.finish({})
    reward = Pretend(root, "reward")
    os.utime(reward.run.config, (time.time() + 1, time.time() + 1))
    view = poll(root)
    assert (view.stage, view.finished, view.steps) == ("reward", ("sft",), None)


def test_no_run_and_a_run_that_is_removed(root: Path) -> None:
    watch = FolderWatch(WatchedFolder.of(root))
    assert watch.poll() is None
    root.mkdir()
    assert watch.poll() is None
    Pretend(root)
    assert watch.poll() is not None
    shutil.rmtree(root)
    gone = watch.poll()
    assert gone is not None and gone.ending is not None and not gone.ending.good


def _dead() -> int:
    """Id of a process that has ended."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_the_end_is_told_in_local_time(root: Path) -> None:
    run = Pretend(root)
    run.run.finish({})
    done = run.run.path / "done.json"
    done.write_text(re.sub(r'"finished": "[^"]*"', '"finished": "2026-01-02T03:04:05+00:00"', done.read_text()))
    local = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC).astimezone()
    assert Stage(run.run.path).finished == f"{local:%Y-%m-%d %H:%M:%S}"
