from __future__ import annotations

from pathlib import Path

from rlhf.storage.durable import write_atomically


def test_an_atomic_write_replaces_the_whole_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_atomically(path, "a long first text")
    write_atomically(path, "short")
    assert path.read_text() == "short"
    assert [item.name for item in tmp_path.iterdir()] == ["file"]
