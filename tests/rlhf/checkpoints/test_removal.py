"""Checkpoints that are removed while training goes on."""

from __future__ import annotations

import shutil
import threading
from pathlib import Path
from typing import Any

import pytest

from rlhf.checkpoints.removal import BackgroundRemoval
from rlhf.checkpoints.store import CheckpointStore
from tests.rlhf.checkpoints.making import commit, names


def test_a_commit_does_not_wait_for_the_removal_of_older_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    may_go_on, remove = threading.Event(), shutil.rmtree

    def slow(path: Any, *arguments: Any, **options: Any) -> None:
        if Path(path).name == "step_1.removed":
            assert may_go_on.wait(30)
        remove(path, *arguments, **options)

    monkeypatch.setattr(shutil, "rmtree", slow)
    removal = BackgroundRemoval()
    store = CheckpointStore(tmp_path, 1, 0, removal=removal.remove)
    for step in (1, 2, 3):  # the third begins while the first is being removed
        commit(store, step)
    assert "step_1.removed" in names(tmp_path), "nobody takes it for a checkpoint any more"
    assert [name for name in names(tmp_path) if name.startswith("step_") and "." not in name] == ["step_3"]
    removal.wait(0.05)
    may_go_on.set()
    removal.wait(30)
    assert names(tmp_path) == ["latest", "step_3"] and removal.take_failures() == []


def test_a_failure_is_told_once_and_tried_again_with_the_next_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Any, *arguments: Any, **options: Any) -> None:
        raise PermissionError(13, "not permitted", str(path))

    removal = BackgroundRemoval()
    store = CheckpointStore(tmp_path, 1, 0, removal=removal.remove)
    commit(store, 1)
    with monkeypatch.context() as broken:
        broken.setattr("rlhf.checkpoints.removal.shutil.rmtree", refuse)
        commit(store, 2)
        removal.wait(30)
    [failure] = removal.take_failures()
    assert failure.path.name == "step_1.removed" and "not permitted" in failure.reason
    assert removal.take_failures() == []
    commit(store, 3)
    removal.wait(30)
    assert names(tmp_path) == ["latest", "step_3"]


def test_an_abandoned_attempt_can_begin_again_at_once(tmp_path: Path) -> None:
    removal = BackgroundRemoval()
    store = CheckpointStore(tmp_path, 2, 0, removal=removal.remove)
    (store.begin(1) / "half").touch()
    store.abandon(1)
    store.abandon(7)  # of which there is nothing
    folder = store.begin(1)
    removal.wait(30)
    assert list(folder.iterdir()) == [] and removal.take_failures() == []


def test_what_is_replaced_goes_the_same_way(tmp_path: Path) -> None:
    removal = BackgroundRemoval()
    store = CheckpointStore(tmp_path, 2, 0, removal=removal.remove)
    commit(store, 1)
    commit(store, 1, attempt=1)
    removal.wait(30)
    assert names(tmp_path) == ["latest", "step_1"]
