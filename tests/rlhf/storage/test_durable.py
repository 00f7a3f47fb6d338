from __future__ import annotations

import os
from pathlib import Path

import pytest

from rlhf.storage.durable import sync_tree, write_atomically, written_folder


def test_an_atomic_write_replaces_the_whole_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_atomically(path, "a long first text")
    write_atomically(path, "short")
    assert path.read_text() == "short"
    assert [item.name for item in tmp_path.iterdir()] == ["file"]


def test_a_tree_is_flushed_with_the_folders_that_hold_its_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """fsync(2) of a file does not flush the entry in its folder."""
    tree = [tmp_path / "model", tmp_path / "model/part", tmp_path / "model/part/weights"]
    tree[1].mkdir(parents=True)
    tree[2].touch()
    flushed: set[int] = set()
    monkeypatch.setattr(os, "fsync", lambda handle: flushed.add(os.fstat(handle).st_ino))
    sync_tree(tree[0])
    assert flushed == {path.stat().st_ino for path in tree}


def test_a_folder_is_replaced_whole_or_stays(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "model"
    with written_folder(folder) as partial:
        (partial / "a").write_text("1")
        assert not folder.exists()
    (tmp_path / "new" / "model.partial").mkdir()
    (tmp_path / "new" / "model.partial" / "of a killed attempt").touch()
    with written_folder(folder) as partial:
        (partial / "b").write_text("2")
        assert [path.name for path in folder.iterdir()] == ["a"]
    assert [path.name for path in folder.iterdir()] == ["b"]
    with pytest.raises(ZeroDivisionError), written_folder(folder) as partial:
        (partial / "c").write_bytes(bytes(1 // 0))
    assert [path.name for path in folder.iterdir()] == ["b"]
    assert [path.name for path in folder.parent.iterdir()] == ["model"]
