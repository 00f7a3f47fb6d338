"""Tests of how a supervised stage resumes and replaces ranks; its group holds one number, in this process."""

from __future__ import annotations

import errno
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import ray

from actors.checkpoint_manager import CheckpointManager
from actors.supervised_loop import Training, TrainingResult
from actors.supervisor import Supervisor
from actors.waiting import PhaseContext
from rlhf.checkpoints.store import CheckpointStore, latest_checkpoint
from rlhf.config.schema import CheckpointConfig, PlacementConfig, Recipe, RecoveryConfig, RoleConfig, TrackingConfig
from rlhf.errors import ClusterError, LostError, MachineryError, Stopped, Unsaved
from rlhf.records import DataFile
from rlhf.run_state import StageState
from rlhf.storage.jsonl import read_lines
from rlhf.tracking.run_folder import RunFolder
from rlhf.tracking.spans import PhaseTimer
from rlhf.tracking.tracker import Tracker

RANK = "policy rank 0"
BATCHES = [[3], [1], [4], [1], [5], [9], [2], [6]]
DATA = (DataFile("rows.jsonl", 9, "aa"),)
CLOCKS = ("time/", "perf/", "health/")
AFTER = (3, 7, 18, 37, 79, 167, 336, 678)
"""The number after each update, which doubles it and adds the batch: by hand."""


class Ranks:
    """A group of one rank, which holds a number; calls in ``faults`` fail once, by method and step."""

    role = "policy"

    def __init__(self, supervisor: Supervisor, faults: dict[tuple[str, int | None], Exception]) -> None:
        self.names, self.supervisor, self.faults = [RANK], supervisor, faults
        self.number, self.has_data, self.rebuilt = 0, False, 0
        supervisor.started(RANK, None)
        supervisor._actors[RANK].member = supervisor._actors[RANK].member.loaded()
        supervisor.serve(self.names)

    def ask(self, method: str, *arguments: Any, context: Any) -> list[Any]:
        if fault := self.faults.pop((method, context.step), None):
            raise fault
        return [getattr(self, method)(*arguments)]

    def set_data(self) -> None:
        self.has_data = True

    def update(self, batch: Sequence[int]) -> dict[str, float]:
        assert self.has_data
        self.number = 2 * self.number + batch[0]
        return {"train/loss": float(self.number)}

    def snapshot(self) -> list[tuple[Any, Any, Any]]:
        content = np.frombuffer(str(self.number).encode(), np.uint8)
        return [(ray.put({"number": content}), ray.put({}), ray.put(None))]

    def load(self, folder: str) -> None:
        self.number = int((Path(folder) / "number").read_bytes())

    def collect(self, parts: Sequence[Sequence[Sequence[Any]]], context: Any) -> None:
        if fault := self.faults.pop(("collect", context.step), None):
            raise fault
        [[_, [self.collected]]] = parts

    def release(self) -> None:
        self.collected = None

    def restore(self, context: Any) -> None:
        self.number = int(ray.get(self.collected)["number"].tobytes())

    def offload(self, context: Any) -> None:
        """It shares nothing."""

    def rebuild(self) -> None:
        self.number, self.has_data = 0, False
        self.rebuilt += 1
        self.supervisor.started(RANK, None)
        self.supervisor._actors[RANK].member = self.supervisor._actors[RANK].member.loaded()


class Stage:
    """A supervised stage in a folder; each ``go`` is a command."""

    def __init__(self, root: Path, **checkpoint: Any) -> None:
        self.root, self.data, self.restarts = root, DATA, 2
        self.checkpoint = CheckpointConfig(**{"supervised_every": 3, "snapshot_every": 0, **checkpoint})
        self.saved, self.shown = -1, list[str]()
        self.stop: Any = None
        self.ranks: Ranks

    def go(
        self, *faults: tuple[str, int | None, Exception], batches: Sequence[Sequence[int]] = BATCHES
    ) -> TrainingResult:
        recipe = Recipe(
            name="t",
            checkpoint=self.checkpoint,
            recovery=RecoveryConfig(backoff_seconds=0.0, restarts=self.restarts),
            placement=PlacementConfig(policy=RoleConfig()),
            tracking=TrackingConfig(wandb="disabled"),
        )
        run = RunFolder.create(self.root, "sft", "name: t\n", "digest", self.data)
        last = latest_checkpoint(run.checkpoints)
        if last is not None:
            run.rewind(StageState.from_json(last.state()).sizes, last.step)
        session: Any = SimpleNamespace(
            recipe=recipe,
            files_of=lambda stage: self.data,
            checkpoint=lambda stage: last,
            console=SimpleNamespace(stage=shows_nothing, print=self.shown.append),
            stop=self.stop,
        )
        try:
            with Tracker(run, recipe) as tracker:
                supervisor = Supervisor(recipe, tracker.event, status=run.path / "status.json")
                self.ranks = ranks = Ranks(supervisor, {(method, step): error for method, step, error in faults})
                group: Any = ranks

                def finish() -> dict[str, float | str]:
                    supervisor.enter_phase(PhaseContext(phase="save"))
                    ranks.ask("offload", None, context=SimpleNamespace(step=None))
                    self.saved = ranks.number
                    return {"saved": float(ranks.number)}

                training = Training(
                    title="SFT",
                    batches=batches,
                    prepare=lambda: ranks.ask("set_data", context=SimpleNamespace(step=None)),
                    evaluate=lambda step: {"eval/loss": 1 / (1 + step)},
                    eval_every=3,
                    finish=finish,
                    shown={},
                )
                return training.run(session, run, group, tracker, PhaseTimer())
        finally:
            run.release()

    @property
    def rows(self) -> list[dict[str, Any]]:
        """What was recorded of each step, without clocks."""
        rows = read_lines(self.root / "sft" / "metrics.jsonl")
        return [{name: value for name, value in row.items() if not name.startswith(CLOCKS)} for row in rows]

    def events(self, kind: str) -> list[dict[str, Any]]:
        return [event for event in read_lines(self.root / "sft" / "events.jsonl") if event["kind"] == kind]


@contextmanager
def shows_nothing(title: str, steps: int) -> Iterator[Callable[..., None]]:
    yield lambda step, shown: None


def expected(losses: Sequence[int] = AFTER) -> list[dict[str, Any]]:
    """Rows of all steps; the third, the sixth and the last are evaluated."""
    evaluated = (2, 5, len(losses) - 1)
    return [
        {"step": step, "train/loss": float(loss), **({"eval/loss": 1 / (1 + step)} if step in evaluated else {})}
        for step, loss in enumerate(losses)
    ]


BROKEN = MachineryError("a loss is not finite")
"""No process is lost: nothing is replaced, and the command ends."""


def died() -> LostError:
    return LostError("killed", (RANK,), "died")


@pytest.fixture
def stage(local_ray: None, tmp_path: Path) -> Stage:
    return Stage(tmp_path)


def test_a_stage_runs_to_its_end(stage: Stage) -> None:
    done = stage.go()
    assert stage.rows == expected()
    assert (done.latest["train/loss"], done.latest["eval/loss"], done.results) == (678.0, 0.125, {"saved": 678.0})
    assert [event["step"] for event in stage.events("checkpoint")] == [3, 6]
    assert {"seconds, update", "seconds, evaluate", "seconds, start", "goodput"} <= done.costs.keys()


def test_a_stage_that_stops_commits_its_last_snapshot_and_goes_on_from_there(local_ray: None, tmp_path: Path) -> None:
    stage = Stage(tmp_path, snapshot_every=1)
    with pytest.raises(Stopped) as stopped:
        stage.go(("update", 4, Stopped("SIGTERM")))
    assert stopped.value.commit.endswith("step_4")
    done = stage.go()
    assert stage.rows == expected() and stage.saved == 678
    assert [event["step"] for event in stage.events("resumed")] == [4]
    assert done.latest["eval/loss"] == 0.125


def test_a_record_that_is_deleted_costs_neither_the_run_nor_its_way_back(
    local_ray: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The snapshot that it goes back to knows the sizes of the deleted files."""
    stage, update = Stage(tmp_path, snapshot_every=2), Ranks.update

    def deletes(ranks: Ranks, batch: Sequence[int]) -> dict[str, float]:
        if stage.rows == expected()[:3]:
            RunFolder(tmp_path, "sft").metrics.unlink()
        return update(ranks, batch)

    monkeypatch.setattr(Ranks, "update", deletes)
    stage.go(("update", 4, died()))
    assert stage.rows == expected()[3:] and stage.saved == 678
    assert [event["before_step"] for event in stage.events("record_lost")] == [3]


def test_a_stop_without_its_checkpoint_is_a_failure(
    local_ray: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its exit code is not 75, which promises that the last snapshot is kept."""
    stage = Stage(tmp_path, snapshot_every=1)

    def is_full(*arguments: Any) -> Any:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(CheckpointStore, "commit", is_full)
        with pytest.raises(Unsaved) as unsaved:
            stage.go(("update", 2, Stopped("SIGTERM")))
    assert unsaved.value.exit_code == 3
    assert "stopped on request (SIGTERM), but the checkpoint after step 2 is not complete" in str(unsaved.value)
    assert [event["step"] for event in stage.events("checkpoint_failed")] == [2]
    stage.go()
    assert stage.rows == expected()


def test_what_a_stop_has_to_write_is_known_at_every_step(
    local_ray: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage, seen = Stage(tmp_path, snapshot_every=1), list[str | None]()
    stage.stop = SimpleNamespace(unsaved=None, deadline=None)
    update = Ranks.update

    def looks(ranks: Ranks, batch: Sequence[int]) -> dict[str, float]:
        seen.append(stage.stop.unsaved())
        return update(ranks, batch)

    monkeypatch.setattr(Ranks, "update", looks)
    with pytest.raises(Stopped):
        stage.go(("update", 5, Stopped("SIGTERM")))
    assert seen[:3] == [None, *(f"the checkpoint after step {step} is not complete" for step in (1, 2))]
    assert seen[3] in (None, "the checkpoint after step 3 is not complete"), "it is written in the background"
    assert seen[4] == "the checkpoint after step 4 is not complete"
    assert stage.stop.unsaved() is None, "it was committed"


def test_ray_s_own_failure_ends_the_stage_without_a_wait_for_its_tasks(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    waited = list[bool]()
    finish = CheckpointManager.finish_checkpoint

    def looks(checkpoints: CheckpointManager[Any], wait_for_it: bool) -> None:
        waited.append(wait_for_it)
        finish(checkpoints, wait_for_it)

    monkeypatch.setattr(CheckpointManager, "finish_checkpoint", looks)
    with pytest.raises(ClusterError):
        stage.go(("update", 2, ClusterError("no raylet")))
    assert waited == [False, False], "after each of the two steps before"


def test_a_stop_that_would_not_fit_in_its_grace_period_is_reported(local_ray: None, tmp_path: Path) -> None:
    """At the start by the size of the snapshot, then as measured, and to a resumed stage as last measured."""
    stage = Stage(tmp_path, snapshot_every=1, grace_seconds=1e-9)
    with pytest.raises(MachineryError, match="not finite"):
        stage.go(("update", 4, BROKEN))
    first, *later = stage.events("alert")
    assert (first["alert"], first["step"]) == ("grace", 0) and "(estimated from its 0 GiB)" in first["message"]
    assert later[0]["step"] == 3 and "(measured after step 3)" in later[0]["message"]
    assert stage.shown == [event["message"] for event in (first, *later)]
    [checkpoint] = stage.events("checkpoint")
    assert 0 < checkpoint["seconds"] < 60
    stage.shown.clear()
    stage.go()
    assert stage.shown[0].startswith("a stop may lose its checkpoint: one takes ")
    assert "(the last one of an earlier command)" in stage.shown[0]


def test_a_stop_that_fits_is_not_reported(stage: Stage) -> None:
    stage.go()
    assert stage.shown == [] and stage.events("alert") == []


def test_a_stage_that_failed_goes_on_from_its_last_checkpoint(stage: Stage) -> None:
    with pytest.raises(MachineryError, match="not finite"):
        stage.go(("update", 4, BROKEN))
    assert [row["step"] for row in stage.rows] == [0, 1, 2, 3]
    stage.go()
    assert stage.rows == expected() and stage.saved == 678
    assert [event["step"] for event in stage.events("resumed")] == [3]


def test_a_stage_that_failed_while_it_saved_repeats_only_what_is_not_kept(stage: Stage) -> None:
    with pytest.raises(MachineryError, match="not finite"):
        stage.go(("offload", None, BROKEN))
    done = stage.go(batches=BATCHES[:6])
    assert stage.events("resumed")[0]["step"] == 6
    assert (done.latest["eval/loss"], done.results) == (1 / 6, {"saved": 167.0}), "there was no step left"


@pytest.mark.parametrize("snapshots", [0, 1, "auto"])
@pytest.mark.parametrize(("method", "step"), [("update", 0), ("update", 2), ("update", 7), ("offload", None)])
def test_lost_ranks_are_replaced_and_every_step_is_recorded_once(
    snapshots: Any, method: str, step: int | None, local_ray: None, tmp_path: Path
) -> None:
    """Also while the model is saved, for which all steps are done."""
    stage = Stage(tmp_path, snapshot_every=snapshots)
    stage.go((method, step, died()))
    assert stage.rows == expected() and stage.saved == 678
    [event] = stage.events("actor_died")
    assert (event["role"], event["rank"], event["step"]) == ("policy", 0, step)
    assert event["phase"] == ("update" if method == "update" else "save")
    assert [event["member"] for event in stage.events("actor_replaced")] == [RANK]
    [restored] = stage.events("restored")
    last = len(BATCHES) - 1 if step is None else step
    assert (restored["step"] + restored["steps_repeated"]) == last + 1
    assert stage.ranks.supervisor.goodput.restarts == 1


def test_a_snapshot_that_is_lost_leads_to_the_checkpoint_in_the_same_recovery(local_ray: None, tmp_path: Path) -> None:
    """Of the fifth step there was a snapshot, of the third a checkpoint: one loss, one restart."""
    stage = Stage(tmp_path, snapshot_every=1)
    stage.restarts = 1
    stage.go(("update", 5, died()), ("collect", None, LostError("an object is lost", kind="failed")))
    assert stage.rows == expected() and stage.saved == 678
    assert [event["step"] for event in stage.events("snapshot_lost")] == [5]
    [restored] = stage.events("restored")
    assert (restored["source"], restored["step"], restored["steps_repeated"]) == ("the checkpoint", 3, 3)
    assert stage.ranks.supervisor.goodput.restarts == 1 and stage.ranks.rebuilt == 1


def test_a_result_that_is_lost_is_computed_again_by_the_same_ranks(stage: Stage) -> None:
    stage.go(("update", 4, LostError("an object is lost", kind="failed")))
    assert stage.rows == expected() and stage.ranks.rebuilt == 0


def test_a_stage_does_not_bear_it_for_ever(stage: Stage) -> None:
    stage.restarts = 0
    with pytest.raises(MachineryError, match=r"during update of step 4(.|\n)*more than recovery\.restarts = 0"):
        stage.go(("update", 4, died()))
    stage.go()
    assert stage.rows == expected() and stage.saved == 678


def test_with_other_data_a_stage_goes_on_at_the_same_step_of_the_new_batches(stage: Stage) -> None:
    """18 after three steps of the old ones; then 2 · 18 + 7, and so on."""
    with pytest.raises(MachineryError, match="not finite"):
        stage.go(("update", 4, BROKEN))
    stage.data = (DataFile("rows.jsonl", 9, "bb"),)
    stage.go(batches=[[7]] * 5)
    assert stage.rows == expected((3, 7, 18, 43, 93))


def test_the_state_is_what_resuming_needs(stage: Stage) -> None:
    stage.go()
    folder = stage.root / "sft" / "checkpoints" / "step_6"
    state, manifest = (json.loads((folder / name).read_text()) for name in ("state.json", "manifest.json"))
    assert set(state) == {"step", "sizes", "goodput", "wandb_id"}
    assert manifest["score"] == -1 / 6
    assert (folder / "policy" / "number").read_text() == "167"
