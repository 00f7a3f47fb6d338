"""Tests that a killed process's files are removed by its id, and no others."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest

from rlhf.recovery import leftovers


def test_what_a_process_left_is_removed_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shared, temporary = tmp_path / "shared", tmp_path / "temporary"
    monkeypatch.setattr(leftovers, "SHARED_MEMORY", shared)
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    dead = subprocess.Popen(["true"])
    dead.wait()
    own = f"{leftovers.pid_namespace()}-{dead.pid}"
    for folder in (shared, temporary):
        (folder / f"rlhf-checkpoint-{own}-k3_x/files").mkdir(parents=True)
        (folder / f"rlhf-checkpoint-{own}-k3_x/files/optimizer").touch()
        (folder / f"rlhf-weights-{own}-a").touch()
    kept = [shared / f"rlhf-weights-{own}7-a", shared / f"other-{own}-a", temporary / "rlhf-0123456789abcdef"]
    kept.append(shared / f"rlhf-weights-4711-{dead.pid}-a")  # of another container
    for path in kept:
        path.touch()
    leftovers.remove_leftovers(dead.pid)
    assert sorted(path for folder in (shared, temporary) for path in folder.iterdir()) == sorted(kept)


def test_shared_memory_is_taken_where_there_is_room_in_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leftovers, "SHARED_MEMORY", tmp_path)
    free = shutil.disk_usage(tmp_path).free
    assert leftovers.roomy_folder(free // 2) == tmp_path
    assert leftovers.roomy_folder(free * 2) is None
    monkeypatch.setattr(leftovers, "SHARED_MEMORY", tmp_path / "nowhere")
    assert leftovers.roomy_folder(1) is None


def test_names_are_what_is_looked_for(tmp_path: Path) -> None:
    with tempfile.TemporaryDirectory(prefix=leftovers.prefix("checkpoint"), dir=tmp_path) as folder:
        assert list(tmp_path.glob(f"rlhf-*-{os.getpid()}-*")) == [Path(folder)]
