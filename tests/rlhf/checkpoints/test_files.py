from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from rlhf.checkpoints import files
from rlhf.checkpoints.files import FileEntry, fault_of, is_inside, write_files

ABC = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"  # FIPS 180-2, appendix B.1
EMPTY = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"


def test_files_hold_the_bytes_of_the_arrays_and_entries_their_hashes(tmp_path: Path) -> None:
    content = {"a/b/abc": np.frombuffer(b"abc", np.uint8), "none": np.empty(0, np.float32)}
    assert write_files(content, tmp_path) == [
        FileEntry(name="a/b/abc", bytes=3, sha256=ABC),
        FileEntry(name="none", bytes=0, sha256=EMPTY),
    ]
    assert (tmp_path / "a/b/abc").read_bytes() == b"abc"


def test_any_shape_and_type_is_written_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "BLOCK_BYTES", 7)  # many blocks, the last one short
    turned = np.arange(6, dtype=np.int32).reshape(2, 3).T
    write_files({"turned": turned, "scalar": np.float64(0.5)[()].reshape(())}, tmp_path)
    assert np.fromfile(tmp_path / "turned", np.int32).tolist() == [0, 3, 1, 4, 2, 5]
    assert np.fromfile(tmp_path / "scalar", np.float64).tolist() == [0.5]
    entries = write_files({"turned": turned}, tmp_path)
    assert fault_of(entries[0], tmp_path) is None


@pytest.mark.parametrize(
    "name", ["", ".", "..", "/etc/x", "../x", "a/../../x", "a//x", "a/", "./x", "a\\x", "a\0x", "a\nx", "\udc80"]
)
def test_names_that_leave_the_folder_are_refused_before_anything_is_written(tmp_path: Path, name: str) -> None:
    assert not is_inside(name)
    with pytest.raises(ValueError, match="not a name"):
        write_files({"good": np.zeros(1), name: np.zeros(1)}, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_names_of_models_files_are_allowed() -> None:
    for name in ("policy/zero_pp_rank_0_mp_rank_00_optim_states.pt", "..a/b..", "a b", "ä.bin"):
        assert is_inside(name)


def test_a_late_writer_does_not_bring_a_removed_folder_back(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        write_files({"policy/x": np.zeros(1)}, tmp_path / "step_3.partial")
    assert list(tmp_path.iterdir()) == []


def test_faults_are_told_apart(tmp_path: Path) -> None:
    [entry] = write_files({"x": np.frombuffer(b"abc", np.uint8)}, tmp_path)
    path = tmp_path / "x"
    path.write_bytes(b"abd")
    assert fault_of(entry, tmp_path) == "has other content than was written"
    path.write_bytes(b"ab")
    assert fault_of(entry, tmp_path) == "has 2 of 3 bytes"
    path.unlink()
    assert fault_of(entry, tmp_path) == "is missing"
    os.mkfifo(path)  # reading it would never end
    assert fault_of(entry, tmp_path) == "is not a file"
    path.unlink()
    path.symlink_to("x")
    assert fault_of(entry, tmp_path) == "cannot be read: Too many levels of symbolic links"
