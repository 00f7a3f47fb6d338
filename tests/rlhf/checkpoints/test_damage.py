"""Tests that a damaged checkpoint is refused with a message, for every kind of damage."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlhf.checkpoints.manifest import write_files
from rlhf.checkpoints.store import Checkpoint, CheckpointStore, latest_checkpoint
from rlhf.errors import UserError
from tests.rlhf.checkpoints.making import arrays, assert_whole, commit

FILES = (*arrays(2), "state.json", "config.yaml", "versions.json", "manifest.json")
KINDS = ("flip", "cut", "remove", "garbage after", "garbage before", "empty", "folder", "null", "list")


@pytest.fixture(scope="module")
def whole() -> Iterator[Path]:
    """Checkpoints of the steps 1 and 2; a test that spoils them mends them."""
    with TemporaryDirectory() as folder:
        store = CheckpointStore(Path(folder), 2, 0)
        commit(store, 1)
        commit(store, 2, score=0.25)
        yield Path(folder)


def damage(path: Path, kind: str, where: float) -> None:
    """Spoil a file; ``where`` (from 0 to 1) is how far into it."""
    old = path.read_bytes()
    bit = int(where * (8 * len(old) - 1)) if old else 0
    flipped = bytearray(old or b"\0")
    flipped[bit // 8] ^= 1 << bit % 8
    new = {
        "flip": bytes(flipped),
        "cut": old[: bit // 8],
        "garbage after": old + b"\0x",
        "garbage before": b"{" + old,
        "empty": b"",
        "null": b"null",
        "list": b"[" * 5000,
    }
    if kind not in new:
        path.unlink()
    if kind == "folder":
        path.mkdir()
    if kind in new:
        path.write_bytes(new[kind])


def read(folder: Path) -> Checkpoint | UserError:
    """The newest checkpoint if it is whole, or the refusal."""
    try:
        found = latest_checkpoint(folder)
        assert found is not None
        found.verify()
    except UserError as error:
        return error
    return found


@settings(max_examples=300)
@given(name=st.sampled_from(FILES), kind=st.sampled_from(KINDS), where=st.floats(0, 1))
def test_every_damage_is_refused_or_does_no_harm(whole: Path, name: str, kind: str, where: float) -> None:
    path = whole / "step_2" / name
    before = path.read_bytes()
    damage(path, kind, where)
    try:
        found = read(whole)
        if isinstance(found, UserError):
            assert str(path) in found.what
            assert found.fix == f"delete {whole}/step_2 to resume from step_1"
            assert len(str(found)) < 1000
        else:  # blanks between the parts of the manifest, or an empty file that is still empty
            assert found.score == 0.25
            assert_whole(found)
            assert name == "manifest.json" or path.read_bytes() == before
    finally:
        if path.is_dir():
            path.rmdir()
        path.write_bytes(before)


@pytest.mark.parametrize("content", [b"[]", b"7", b"null", b"{", b"\xff", b"[" * 100_000, b"9" * 5000])
def test_a_state_that_is_no_mapping_is_refused_even_when_its_hash_fits(
    whole: Path, tmp_path: Path, content: bytes
) -> None:
    (tmp_path / "state.json").write_bytes(content)
    [entry] = write_files({"state.json": np.frombuffer(content, np.uint8)}, tmp_path)
    found = latest_checkpoint(whole)
    assert found is not None
    forged = replace(found, path=tmp_path, manifest=replace(found.manifest, files=(entry,)))
    forged.verify()
    with pytest.raises(UserError, match="state.json"):
        forged.state()


def copy(whole: Path, to: Path) -> Path:
    shutil.copytree(whole, to, dirs_exist_ok=True)
    return to


def test_refusals_say_what_is_wrong_and_what_to_do(whole: Path, tmp_path: Path) -> None:
    folder = copy(whole, tmp_path)
    (folder / "step_2" / "policy" / "rank_0.bin").write_bytes(b"123")
    with pytest.raises(UserError, match=r"step_2/policy/rank_0.bin has 3 of 4000 bytes\n"):
        latest_checkpoint(folder).verify()  # type: ignore[union-attr]
    shutil.rmtree(folder / "step_2" / "critic")
    with pytest.raises(UserError, match=r"bytes; 2 more of its 6 files are damaged\n"):
        latest_checkpoint(folder).verify()  # type: ignore[union-attr]
    (folder / "step_2" / "state.json").unlink()
    with pytest.raises(UserError, match="state.json is missing"):
        latest_checkpoint(folder).state()  # type: ignore[union-attr]
    shutil.rmtree(folder / "step_1")
    (folder / "step_2" / "manifest.json").unlink()
    with pytest.raises(UserError, match="manifest.json cannot be read: No such file") as caught:
        latest_checkpoint(folder)
    assert caught.value.fix == f"delete {folder}/step_2 to start again"


def test_following_the_fix_goes_on_from_the_older_one(whole: Path, tmp_path: Path) -> None:
    folder = copy(whole, tmp_path)
    shutil.rmtree(folder / "step_2")  # the pointer now leads nowhere
    found = latest_checkpoint(folder)
    assert found is not None and found.step == 1
    assert_whole(found)


def test_a_copied_or_renamed_checkpoint_is_refused(whole: Path, tmp_path: Path) -> None:
    folder = copy(whole, tmp_path)
    (folder / "step_1").rename(folder / "step_30")
    with pytest.raises(UserError, match="is the manifest of step_1"):
        latest_checkpoint(folder)
