from __future__ import annotations

import hashlib
import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlhf.checkpoints import manifest
from rlhf.checkpoints.manifest import (
    FileEntry,
    Manifest,
    decode,
    encode,
    fault_of,
    is_inside,
    share_files,
    write_files,
)
from rlhf.records import DataFile

EMPTY = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
NAMES = ("policy/a", "state.json", "config.yaml", "versions.json")
MANIFEST = Manifest(
    step=7,
    score=-0.1,
    written="2026-01-02T03:04:05+00:00",
    files=tuple(FileEntry(name=name, bytes=0, sha256=EMPTY) for name in NAMES),
)


def signed(**changes: Any) -> str:
    """A manifest with other values and the hash that fits them."""
    body = json.loads(encode(MANIFEST)) | changes
    del body["sha256"]
    digest = hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
    return json.dumps(body | {"sha256": digest})


def listing(**changes: Any) -> list[dict[str, Any]]:
    return [{"name": name, "bytes": 0, "sha256": EMPTY} for name in NAMES[1:]] + [
        {"name": "x", "bytes": 0, "sha256": EMPTY} | changes
    ]


def test_a_manifest_is_read_back() -> None:
    assert decode(encode(MANIFEST)) == MANIFEST
    assert decode(signed(score=None)).score is None
    assert decode(signed(files=listing())).files[-1].name == "x"
    data = (DataFile("rows.jsonl", 3, "ab"),)
    assert decode(encode(replace(MANIFEST, data=data))).data == data


def test_a_manifest_from_before_data_was_kept_is_read() -> None:
    body = json.loads(encode(MANIFEST))
    del body["sha256"], body["data"]
    digest = hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
    assert decode(json.dumps(body | {"sha256": digest})) == MANIFEST


@pytest.mark.parametrize(
    "changes",
    [
        {"format": 2},
        {"format": None},
        {"step": -1},
        {"step": True},
        {"step": "7"},
        {"step": 7.0},
        {"step": 10**400},
        {"score": "high"},
        {"score": float("nan")},
        {"score": float("inf")},
        {"written": None},
        {"files": None},
        {"files": "abc"},
        {"files": {"name": "x"}},
        {"files": []},
        {"files": [[]]},
        {"files": listing(name="../x")},
        {"files": listing(name="/x")},
        {"files": listing(name="state.json")},
        {"files": listing(name=5)},
        {"files": listing(bytes=-1)},
        {"files": listing(bytes=1e3)},
        {"files": listing(bytes=2**63)},
        {"files": listing(sha256="x" * 64)},
        {"files": listing(sha256=None)},
        {"files": listing(mode=5)},
        {"data": [{"file": "a", "rows": -1, "digest": "ab"}]},
        {"data": [{"file": "a", "rows": 1}]},
        {"data": 5},
    ],
    ids=str,
)
def test_a_manifest_with_other_types_is_none_even_when_its_hash_fits(changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="is no manifest|has format") as caught:
        decode(signed(**changes))
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize(
    "text",
    ["", "null", "[]", "5", '"x"', "{}", "{", '{"sha256": 1}', "[" * 100_000, '{"a":' * 700 + "1" + "}" * 700]
    + ['{"step": ' + "9" * 5000 + "}", '{"step": 1e999}', encode(MANIFEST).replace("-0.1", "-0.2")],
    ids=range(13),
)
def test_other_texts_are_no_manifests(text: str) -> None:
    with pytest.raises(ValueError, match="is not JSON|does not hold a JSON object|does not fit its own hash"):
        decode(text)


ABC = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"  # FIPS 180-2, appendix B.1


def test_files_hold_the_bytes_of_the_arrays_and_entries_their_hashes(tmp_path: Path) -> None:
    content = {"a/b/abc": np.frombuffer(b"abc", np.uint8), "none": np.empty(0, np.float32)}
    assert write_files(content, tmp_path) == [
        FileEntry(name="a/b/abc", bytes=3, sha256=ABC),
        FileEntry(name="none", bytes=0, sha256=EMPTY),
    ]
    assert (tmp_path / "a/b/abc").read_bytes() == b"abc"


def test_any_shape_and_type_is_written_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(manifest, "BLOCK_BYTES", 7)  # many blocks, the last one short
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


@given(sizes=st.lists(st.integers(0, 1000), max_size=30), parts=st.integers(1, 5))
def test_files_are_shared_evenly(sizes: list[int], parts: int) -> None:
    """Each is in one part, and no part has more than the smallest and one file."""
    entries = [FileEntry(name=str(i), bytes=size, sha256="") for i, size in enumerate(sizes)]
    shares = share_files(entries, parts)
    assert len(shares) == parts
    assert sorted((entry for share in shares for entry in share), key=lambda entry: int(entry.name)) == entries
    totals = [sum(entry.bytes for entry in share) for share in shares]
    assert max(totals) - min(totals) <= max(sizes, default=0)
