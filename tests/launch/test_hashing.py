"""The progress of hashing large folders, on standard error."""

from __future__ import annotations

from pathlib import Path

import pytest

from launch import hashing
from launch.cli import main
from launch.hashing import MIB, shown_hashing
from rlhf.checkpoints.manifest import hash_files
from rlhf.storage.hashing import file_sha256


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three files of 1, 2 and 3 MiB, one of them a model's weights."""
    made = tmp_path / "model"
    made.mkdir()
    for size, name in enumerate(("a.safetensors", "b", "c"), start=1):
        (made / name).write_bytes(bytes([size]) * size * MIB)
    return made


def test_a_large_folder_shows_its_progress(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(hashing, "LARGE_BYTES", 6 * MIB)
    with shown_hashing() as progress:
        files = hash_files(folder, progress)
    shown = capsys.readouterr()
    assert shown.out == "" and "Hashing files, MiB  0/6" in shown.err and "6/6" in shown.err
    assert files == hash_files(folder)
    assert [entry.sha256 for entry in files] == [file_sha256(folder / entry.name) for entry in files]


def test_a_small_folder_shows_none(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with shown_hashing() as progress:
        hash_files(folder, progress)
    assert capsys.readouterr().err == ""


def test_every_command_that_hashes_an_artefact_shows_it(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(hashing, "LARGE_BYTES", MIB)
    registry, why = str(tmp_path / "registry.db"), ("--why", "a test", "--who", "me")
    for arguments in (
        ("register", registry, "travel-1", str(folder), *why),
        ("show", registry, "travel-1", "--verify"),
    ):
        assert main(["registry", *arguments]) == 0
        shown = capsys.readouterr()
        assert "Hashing files, MiB  6/6" in shown.err and "Hashing" not in shown.out, arguments
