"""Tests of snapshots and checkpoints when writing fails, is interrupted, or a node is lost; groups hold a few bytes."""

from __future__ import annotations

import errno
import json
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import ray

from actors.blocks import Block
from actors.checkpoint_manager import CheckpointManager
from actors.snapshots import Copies
from actors.supervisor import Supervisor
from actors.waiting import PhaseContext
from rlhf.checkpoints.removal import BackgroundRemoval
from rlhf.checkpoints.store import CheckpointStore, committed, read_checkpoint
from rlhf.config.schema import CheckpointConfig, Recipe
from rlhf.data.order import OrderState
from rlhf.errors import LostError, MachineryError, Stopped, UserError
from rlhf.records import DataFile
from rlhf.recovery.snapshot_pace import SnapshotPace
from rlhf.run_state import RunState
from rlhf.storage.jsonl import append_line, read_lines
from rlhf.tracking.run_folder import RunFolder
from rlhf.tracking.spans import PhaseTimer
from tests.actors.test_blocks import BLOCK

RECIPE = Recipe(name="x", checkpoint=CheckpointConfig(every=1, supervised_every=1, failures=3, keep_last=2))


class Group:
    """Holds one number a rank, and gives it as a file."""

    def __init__(self) -> None:
        self.held, self.names = 1, ["policy rank 0"]
        self.is_lost, self.lost = False, set[int]()
        self.asked: list[str] = []
        self.collected: Sequence[Copies] = ()

    def snapshot(self) -> list[tuple[Any, Any, Any]]:
        return [(ray.put({"weights": np.array([self.held], np.uint8)}), ray.put({}), ray.put(None))]

    def ask(self, method: str, folder: str, context: Any) -> None:
        self.held = int(np.fromfile(Path(folder) / "weights", np.uint8)[0])
        self.asked.append(method)

    def collect(self, parts: Sequence[Sequence[Copies]], context: Any) -> None:
        [self.collected] = parts
        held = {int(content[0]) for first, *_ in self.collected for content in ray.get(first).values()}
        if self.is_lost or held & self.lost:
            raise LostError("it went with its node")

    def release(self) -> None:
        self.collected = ()

    def restore(self, context: Any) -> None:
        for first, *_ in self.collected:
            for content in ray.get(first).values():
                self.held = int(content[0])
        self.asked.append("restore")

    def offload(self, context: Any) -> None:
        self.asked.append("offload")


class Running:
    """A checkpoint manager, with all that it needs of a run."""

    def __init__(self, root: Path) -> None:
        self.group, self.stop = Group(), False
        self.run = RunFolder.create(root, "ppo", "name: x\n", "digest")
        self.supervisor = Supervisor(RECIPE, self.event, self.check)
        self.supervisor.started("policy rank 0", None)
        self.supervisor.serve = lambda names: None  # type: ignore[method-assign]
        actors: Any = SimpleNamespace(
            recipe=RECIPE,
            trained={"policy": self.group},
            supervisor=self.supervisor,
            rebuild=lambda group: group.asked.append("rebuild"),
        )
        tracker: Any = SimpleNamespace(event=self.event, checkpoint=self.committed, wandb_id="")
        self.events: list[tuple[str, dict[str, Any]]] = []
        self.removal = BackgroundRemoval()
        store = CheckpointStore(self.run.checkpoints, 2, 0, removal=self.removal.remove)
        self.checkpoints = CheckpointManager(
            actors, self.run, store, RunState.start(RECIPE), tracker, PhaseTimer(), self.removal
        )

    def event(self, kind: str, **details: Any) -> None:
        self.events.append((kind, details))

    def committed(self, step: int, size: int, folder: Path, seconds: float) -> None:
        self.event("checkpoint", step=step, bytes=size, path=str(folder), seconds=seconds)

    def check(self) -> None:
        if self.stop:
            raise Stopped("SIGTERM")

    def state(self, step: int) -> RunState:
        """After so many steps, each of which is recorded."""
        while len(read_lines(self.run.metrics)) < step:
            append_line(self.run.metrics, {"step": len(read_lines(self.run.metrics))})
        self.group.held = step
        return replace(RunState.start(RECIPE), step=step, order=OrderState(0, step))

    def told(self, kind: str) -> list[dict[str, Any]]:
        return [details for each, details in self.events if each == kind]


@pytest.fixture
def running(local_ray: None, tmp_path: Path) -> Iterator[Running]:
    each = Running(tmp_path)
    yield each
    each.run.release()


def test_a_checkpoint_that_fails_costs_the_run_nothing_until_there_are_too_many(running: Running) -> None:
    checkpoints = running.checkpoints
    checkpoints.take_snapshot(running.state(1))
    checkpoints.begin_checkpoint()
    shutil.rmtree(running.run.checkpoints)  # as if the disk were gone
    running.run.checkpoints.touch()
    checkpoints.finish_checkpoint(wait_for_it=True)
    checkpoints.keep(running.state(2), (), {})
    assert [event["in_a_row"] for event in running.told("checkpoint_failed")] == [1, 2]
    with pytest.raises(MachineryError, match="failed 3 times in a row.*There is no checkpoint yet"):
        checkpoints.keep(running.state(3), (), {})


def test_a_full_disk_names_the_file_of_the_checkpoint(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoints, begin = running.checkpoints, running.checkpoints.store.begin

    def with_full_file(step: int) -> Path:
        folder = begin(step)
        (folder / "policy").mkdir()
        (folder / "policy" / "weights").symlink_to("/dev/full")
        return folder

    monkeypatch.setattr(checkpoints.store, "begin", with_full_file)
    checkpoints._failures = 2
    with pytest.raises(MachineryError, match="There is no checkpoint yet.*Free space there.* the same command") as last:
        checkpoints.keep(running.state(1), (), {}, is_last=True)
    [failed] = running.told("checkpoint_failed")
    file = checkpoints.store.folder / "step_1.partial" / "policy" / "weights"
    assert failed["error"].startswith(f"{file} cannot be written: No space left on device (") and str(file) in str(
        last.value
    )


def test_a_file_that_is_not_the_runs_may_be_missed_because_ray_itself_has_failed(running: Running) -> None:
    checkpoints = running.checkpoints
    checkpoints._failures, running.stop = 2, True
    with pytest.raises(Stopped):
        checkpoints._failed(3, FileNotFoundError(errno.ENOENT, "gone", "/tmp/ray/session_1/logs/worker-1.out"))
    checkpoints._failures = 2
    with pytest.raises(MachineryError, match="failed 3 times"):
        checkpoints._failed(3, OSError(errno.EIO, "broken", str(checkpoints.store.folder / "step_3")))


def test_with_other_data_an_epoch_of_the_new_prompts_begins(running: Running) -> None:
    """Places in the old order, and rollouts that were made ahead, are of prompts that are other ones now."""
    checkpoints, block = running.checkpoints, Block(rollouts=ray.put(BLOCK), samples=2, set_aside=0, tokens=9)
    checkpoints.store.data = (DataFile("rows.jsonl", 9, "aa"),)
    checkpoints.take_snapshot(running.state(3), [block])
    checkpoints.begin_checkpoint()
    checkpoints.finish_checkpoint(wait_for_it=True)
    assert checkpoints.committed is not None and checkpoints.committed.manifest.data == checkpoints.store.data
    state, pregenerated_blocks = checkpoints.load(checkpoints.committed, PhaseContext(phase="load"))
    assert (state.order, len(pregenerated_blocks)) == (OrderState(0, 3), 1)
    checkpoints.store.data = (DataFile("rows.jsonl", 2, "bb"),)
    state, pregenerated_blocks = checkpoints.load(checkpoints.committed, PhaseContext(phase="load"))
    assert (state.step, state.order, pregenerated_blocks) == (3, OrderState(1, 0), ())


def test_one_that_is_written_makes_up_for_those_that_failed(running: Running) -> None:
    checkpoints = running.checkpoints
    for step in (1, 2, 3, 4):
        checkpoints.take_snapshot(running.state(step))
        checkpoints.begin_checkpoint()
        if step != 2:
            shutil.rmtree(running.run.checkpoints)
        checkpoints.finish_checkpoint(wait_for_it=True)
    assert [event["in_a_row"] for event in running.told("checkpoint_failed")] == [1, 1, 2]
    assert [event["step"] for event in running.told("checkpoint")] == [2]


def test_a_stop_during_the_wait_for_a_checkpoint_does_not_lose_it(running: Running) -> None:
    checkpoints = running.checkpoints
    checkpoints.take_snapshot(running.state(1))
    checkpoints.begin_checkpoint()
    running.stop = True
    with pytest.raises(Stopped):
        checkpoints.finish_checkpoint(wait_for_it=True)
    with running.supervisor.deadlines.undisturbed():
        checkpoints.begin_checkpoint()
        checkpoints.finish_checkpoint(wait_for_it=True)
    assert [event["step"] for event in running.told("checkpoint")] == [1]
    assert checkpoints.committed is not None
    checkpoints.committed.verify()


def test_the_snapshot_is_what_a_run_goes_back_to_and_its_record_with_it(running: Running) -> None:
    running.checkpoints.take_snapshot(running.state(2))
    running.state(3)
    state, pregenerated_blocks = running.checkpoints.restore()
    assert (state.step, state.order, running.group.held, list(pregenerated_blocks)) == (2, OrderState(0, 2), 2, [])
    assert running.group.asked == ["restore", "offload"], "it makes room for the engines again"
    assert [row["step"] for row in read_lines(running.run.metrics)] == [0, 1]


def test_with_nothing_kept_it_is_the_beginning(running: Running) -> None:
    running.state(2)
    state, pregenerated_blocks = running.checkpoints.restore()
    assert (state.step, state.order, pregenerated_blocks) == (0, OrderState(0, 0), ())
    assert running.group.asked[0] == "rebuild"
    assert read_lines(running.run.metrics) == [], "the steps that are repeated are recorded again"


def test_without_the_snapshot_it_is_the_checkpoint_that_was_being_written(running: Running) -> None:
    checkpoints = running.checkpoints
    checkpoints.take_snapshot(running.state(1))
    checkpoints.begin_checkpoint()
    checkpoints.finish_checkpoint(wait_for_it=True)
    checkpoints.take_snapshot(running.state(2))
    checkpoints.begin_checkpoint()
    running.state(3)
    running.group.is_lost = True
    state, _ = checkpoints.restore()
    assert (state.step, running.group.held) == (2, 2)
    assert [event["step"] for event in running.told("snapshot_lost")] == [2]
    assert [event["step"] for event in running.told("checkpoint")] == [1, 2]
    assert len(read_lines(running.run.metrics)) == 2


def test_a_checkpoint_is_made_every_so_many_steps_and_at_the_end(running: Running) -> None:
    checkpoints = running.checkpoints
    checkpoints.config = CheckpointConfig(every=2, snapshot_every=0)
    for step in (1, 2, 3):
        checkpoints.keep(running.state(step), (), {checkpoints.config.best_metric: 0.0}, is_last=step == 3)
        checkpoints.finish_checkpoint(wait_for_it=True)
    assert [event["step"] for event in running.told("checkpoint")] == [2, 3]


def test_the_last_step_has_a_checkpoint_on_return(running: Running) -> None:
    """Its policy is needed afterwards: for answers, and as the run's model."""
    checkpoints = running.checkpoints
    checkpoints.config, checkpoints._pace = (
        CheckpointConfig(every=100),
        SnapshotPace(seconds=60.0, ended=time.monotonic()),
    )
    checkpoints.keep(running.state(7), (), {}, is_last=True)
    assert checkpoints.snapshot is not None and checkpoints.snapshot.state.step == 7
    assert [event["step"] for event in running.told("checkpoint")] == [7], "committed on return"


def test_snapshots_wait_until_they_pay(running: Running) -> None:
    checkpoints, taken = running.checkpoints, []
    checkpoints.config = CheckpointConfig(every=100)
    for step, last in (
        (1, SnapshotPace()),
        (2, SnapshotPace(seconds=60.0, ended=time.monotonic())),
        (3, SnapshotPace()),
    ):
        checkpoints._pace = last
        checkpoints.keep(running.state(step), (), {})
        taken.append(checkpoints.snapshot and checkpoints.snapshot.state.step)
    assert taken == [1, 1, 3]
    assert 0 < checkpoints._pace.seconds < 60 and checkpoints._pace.ended <= time.monotonic()


def test_rollouts_of_the_next_step_are_kept_with_both_in_their_order(running: Running) -> None:
    checkpoints = running.checkpoints
    parts = [BLOCK.select([i % 2]) for i in range(11)]  # files are listed by name, and 10 stands before 2
    given = [
        Block(rollouts=ray.put(part), samples=1, set_aside=i % 2, tokens=[5, 1][i % 2], stream=f"engine {i % 3}")
        for i, part in enumerate(parts)
    ]
    checkpoints.take_snapshot(running.state(1), given)
    checkpoints.begin_checkpoint()
    checkpoints.finish_checkpoint(wait_for_it=True)
    _, pregenerated_blocks = checkpoints.restore()
    assert list(pregenerated_blocks) == given
    running.group.is_lost = True
    _, pregenerated_blocks = checkpoints.restore()
    assert [replace(block, rollouts=None) for block in pregenerated_blocks] == [
        replace(block, rollouts=None) for block in given
    ]
    for block, part in zip(pregenerated_blocks, parts, strict=True):
        assert ray.get(block.rollouts).sequences.tokens.tolist() == part.sequences.tokens.tolist()
    assert json.loads((running.run.checkpoints / "step_1" / "state.json").read_text())["step"] == 1


def test_a_metric_that_is_not_there_cannot_say_which_checkpoint_is_best(running: Running) -> None:
    running.checkpoints.keep(running.state(1), (), {"objective/kl": 1.0})
    [told] = running.told("no_best_metric")
    assert told == {"step": 1, "metric": RECIPE.checkpoint.best_metric}


def test_other_stages_rank_their_checkpoints_by_the_held_out_loss(running: Running) -> None:
    """The lower, the better: of three the second and the newest stay. A step without an evaluation has no rank."""
    checkpoints = running.checkpoints
    running.run.stage, checkpoints.store = "sft", CheckpointStore(running.run.checkpoints, 1, 1)
    for step, metrics in ((1, {"eval/loss": 2.5}), (2, {"eval/loss": 1.5}), (3, {"eval/loss": 2.0}), (4, {})):
        checkpoints.keep(running.state(step), (), metrics)
        checkpoints.finish_checkpoint(wait_for_it=True)
    scores = {step: read_checkpoint(path).score for step, path in committed(running.run.checkpoints).items()}
    assert scores == {2: -1.5, 4: None}
    assert running.told("no_best_metric") == []


def test_short_supervised_stages_write_no_checkpoint(running: Running) -> None:
    checkpoints = running.checkpoints
    checkpoints.config = CheckpointConfig(snapshot_every=0)
    assert [checkpoints.config.every_in(stage) for stage in ("ppo", "sft", "reward", "dpo")] == [10, 200, 200, 200]
    for stage, steps in (("sft", [200, 400]), ("ppo", [190, 200, 400])):
        running.run.stage = stage
        for step in (190, 199, 200, 400):
            checkpoints.keep(replace(running.state(1), step=step), (), {checkpoints.config.best_metric: 0.0})
            checkpoints.finish_checkpoint(wait_for_it=True)
        assert [event["step"] for event in running.told("checkpoint")] == steps
        running.events.clear()
        checkpoints.committed = None


def test_a_damaged_checkpoint_is_refused_in_a_recovery_and_no_rank_reads_it(running: Running) -> None:
    checkpoints = running.checkpoints
    checkpoints.keep(running.state(1), (), {})
    checkpoints.finish_checkpoint(wait_for_it=True)
    assert checkpoints.committed is not None
    (checkpoints.committed.path / "policy" / "weights").write_bytes(b"\x09")
    running.group.is_lost = True
    with pytest.raises(UserError, match="policy/weights has other content than was written"):
        checkpoints.restore()
    assert running.group.asked == []


def test_what_cannot_be_removed_is_told(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Any, *arguments: Any, **options: Any) -> None:
        raise PermissionError(13, "not permitted", str(path))

    monkeypatch.setattr("rlhf.checkpoints.removal.shutil.rmtree", refuse)
    for step in (1, 2, 3):
        running.checkpoints.keep(running.state(step), (), {})
        running.checkpoints.finish_checkpoint(wait_for_it=True)
    running.checkpoints.settle()
    [told] = running.told("removal_failed")
    assert "step_1.removed" in told["path"] and "not permitted" in told["error"]
    assert list(committed(running.run.checkpoints)) == [2, 3]


@pytest.mark.parametrize(("written", "restored"), [(1, 2), (3, 3)])
def test_what_is_restored_is_the_newest_of_the_last_copies_and_the_last_checkpoint(
    written: int, restored: int, running: Running
) -> None:
    """Of the second step there are copies on other nodes, and the fourth is lost before it is copied."""
    checkpoints = running.checkpoints
    for step in (1, 2, 3, 4):
        checkpoints.take_snapshot(running.state(step), score=0.5)
        if step == 2:
            checkpoints._copier.complete = checkpoints.snapshot
        if step == written:
            checkpoints.begin_checkpoint()
            checkpoints.finish_checkpoint(wait_for_it=True)
    running.group.lost = {4}
    state, _ = checkpoints.restore()
    assert (state.step, running.group.held) == (restored, restored)
    assert [event["step"] for event in running.told("snapshot_lost")] == [4]
    assert [row["step"] for row in read_lines(running.run.metrics)] == list(range(restored))
    if restored == 2:
        assert checkpoints.snapshot is checkpoints._copier.complete, "a stop would commit it"
        running.group.lost = {2, 4}
        state, _ = checkpoints.restore()
        assert state.step == 1 and checkpoints._copier.complete is None, "then the copies are lost too"
