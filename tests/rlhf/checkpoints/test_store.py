from __future__ import annotations

import json
import math
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlhf.checkpoints.manifest import FileEntry, write_files
from rlhf.checkpoints.store import CheckpointStore, by_score, clean, committed, kept, latest_checkpoint, remove
from tests.rlhf.checkpoints.making import CONFIG, arrays, assert_whole, commit, memory_folder, names


def test_a_checkpoint_from_begin_to_state(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path / "deep" / "checkpoints", 2, 1)
    assert store.latest() is None
    partial = store.begin(3)
    assert partial.name == "step_3.partial" and names(partial) == []
    entries = write_files(arrays(3), partial)
    assert store.latest() is None
    state = {"cursor": 2**100, "kl": 0.1, "rng": [1, None, "ä\udc80"], "best": -math.inf}
    made = store.commit(3, entries, state, CONFIG, np.float32(0.5))
    assert names(store.folder) == ["best", "latest", "step_3"]
    assert names(made.path) == ["config.yaml", "critic", "manifest.json", "policy", "state.json", "versions.json"]
    found = store.latest()
    assert found == made == latest_checkpoint(store.folder)
    assert (found.step, found.score, found.path) == (3, 0.5, store.folder / "step_3")
    found.verify()
    assert (found.state(), found.config()) == (state, CONFIG)
    assert json.loads((found.path / "versions.json").read_text())["numpy"] == np.__version__
    assert [(store.folder / name).read_text() for name in ("latest", "best")] == ["step_3\n", "step_3\n"]


def test_a_step_done_again_takes_the_place_of_the_first(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, 2, 0)
    for step, attempt in ((1, 0), (2, 0), (2, 1), (1, 1)):
        commit(store, step, attempt=attempt)
    assert names(tmp_path) == ["latest", "step_1", "step_2"]
    found = store.latest()
    assert found.step == 2 and found.state()["attempt"] == 1
    assert_whole(found)


def test_an_attempt_that_is_given_up_leaves_the_rest(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, 1, 0)
    commit(store, 1)
    write_files(arrays(2), store.begin(2))
    store.begin(3)
    store.abandon(2)
    store.abandon(2)
    store.abandon(99)
    assert names(tmp_path) == ["latest", "step_1", "step_3.partial"]
    assert_whole(store.latest())


def test_leftovers_go_when_the_store_is_opened_and_at_the_next_begin(tmp_path: Path) -> None:
    (tmp_path / "step_5.partial").mkdir()
    store = CheckpointStore(tmp_path, 1, 0)
    assert names(tmp_path) == []
    (tmp_path / "step_6.partial").mkdir()
    first, second = store.begin(7), store.begin(8)
    assert names(tmp_path) == [first.name, second.name]
    (first / "x").write_text("x")
    assert names(store.begin(7)) == []


def test_a_file_that_another_node_wrote_elsewhere_is_not_committed(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, 1, 0)
    entries = write_files(arrays(1), store.begin(1))
    elsewhere = FileEntry(name="critic/rank_1.bin", bytes=5, sha256="0" * 64)
    with pytest.raises(OSError, match="do all nodes share this folder.*rank_1.bin"):
        store.commit(1, [*entries, elsewhere], {}, CONFIG, None)
    (tmp_path / "step_1.partial" / "critic" / "rank_1.bin").write_bytes(b"1234")
    with pytest.raises(OSError, match="written with 5 bytes"):
        store.commit(1, [*entries, elsewhere], {}, CONFIG, None)
    assert store.latest() is None
    with pytest.raises(ValueError, match="not a name"):
        store.commit(1, [*entries, entries[0]], {}, CONFIG, None)
    with pytest.raises(ValueError, match="not a name"):
        store.commit(1, [FileEntry(name="state.json", bytes=0, sha256="0" * 64)], {}, CONFIG, None)


@pytest.mark.parametrize("fails", ["step_1.replaced", "step_1"])
def test_a_rename_that_fails_leaves_the_old_one_in_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: str
) -> None:
    store, rename = CheckpointStore(tmp_path, 1, 0), Path.rename
    commit(store, 1)
    entries = write_files(arrays(1, attempt=1), store.begin(1))

    def failing(path: Path, target: Path) -> Path:
        if target.name == fails and path.suffix != ".replaced":
            raise OSError("no")
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", failing)
    with pytest.raises(OSError, match="no"):
        store.commit(1, entries, {"step": 1, "attempt": 1}, CONFIG, None)
    assert names(tmp_path) == ["latest", "step_1", "step_1.partial"]
    found = store.latest()
    assert_whole(found)
    assert found.state()["attempt"] == 0


def test_what_was_just_committed_stays_even_if_a_later_step_is_there(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, 1, 0)
    for step in (9, 5, 6):
        commit(store, step)
    assert names(tmp_path) == ["latest", "step_6", "step_9"]
    assert (tmp_path / "latest").read_text() == "step_9\n"


def test_a_damaged_old_checkpoint_neither_stops_commits_nor_is_removed(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, 1, 1)
    commit(store, 1, score=9.0)
    (tmp_path / "step_1" / "manifest.json").write_text("{")
    for step in (2, 3):
        commit(store, step, score=float(-step))
    assert names(tmp_path) == ["best", "latest", "step_1", "step_2", "step_3"]
    assert (tmp_path / "best").read_text() == "step_2\n"


def test_all_is_on_the_disk_before_it_has_its_name_and_the_name_before_the_old_one_goes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, events = CheckpointStore(tmp_path, 1, 0), []
    commit(store, 1)
    fsync, rename = os.fsync, Path.rename

    def record_sync(handle: int) -> None:
        events.append(("sync", os.readlink(f"/proc/self/fd/{handle}")))
        fsync(handle)

    def record_rename(path: Path, target: Path) -> Path:
        events.append(("rename", str(target)))
        return rename(path, target)

    monkeypatch.setattr(os, "fsync", record_sync)
    monkeypatch.setattr(Path, "rename", record_rename)
    made = commit(store, 2)
    named, removed = (events.index(("rename", f"{tmp_path}/step_{name}")) for name in ("2", "1.removed"))
    synced = {path for _, path in events[:named]}
    whole = [f"{tmp_path}/step_2.partial/{path.relative_to(made.path)}" for path in made.path.rglob("*")]
    assert len(whole) == 10 and set(whole) <= synced and f"{tmp_path}/step_2.partial" in synced
    assert events[named - 1] == ("sync", f"{tmp_path}/step_2.partial")
    assert events[named + 1] == ("sync", str(tmp_path)) and removed > named + 1


SCORES = st.one_of(st.none(), st.just(math.nan), st.just(math.inf), st.integers(-3, 3).map(float))


@settings(max_examples=40)
@given(scores=st.lists(SCORES, min_size=1, max_size=8), keep_last=st.integers(1, 3), keep_best=st.integers(0, 2))
def test_the_steps_that_survive_are_those_of_a_simple_model(
    scores: list[float | None], keep_last: int, keep_best: int
) -> None:
    model: list[tuple[float, int]] = []  # what is there; a score that is none is below all others
    with memory_folder() as folder:
        store = CheckpointStore(Path(folder), keep_last, keep_best)
        for step, score in enumerate(scores):
            store.commit(step, write_files({"x": np.array([step])}, store.begin(step)), {}, CONFIG, score)
            model.append((score if score is not None and math.isfinite(score) else -math.inf, step))
            best = [item for item in sorted(model)[::-1][:keep_best] if item[0] > -math.inf]
            model = [item for item in model if item in model[-keep_last:] or item in best]
            assert [path for path in names(Path(folder)) if "step" in path] == [f"step_{step}" for _, step in model]
            assert (Path(folder) / "latest").read_text() == f"step_{step}\n"
            pointer = Path(folder) / "best"
            assert (pointer.read_text() if best else "") == (f"step_{best[0][1]}\n" if best else "")
            assert store.latest().step == step


def test_only_committed_folders_count_and_by_their_numbers(tmp_path: Path) -> None:
    for name in ("step_9", "step_10", "step_0", "step_11.partial", "step_12.removed", "step_013", "step_x", "latest"):
        (tmp_path / name).mkdir()
    assert list(committed(tmp_path)) == [0, 9, 10]
    assert committed(tmp_path / "none") == {}


def test_leftovers_go_and_what_a_person_put_there_stays(tmp_path: Path) -> None:
    for name in ("step_1", "step_2.partial", "step_3.partial", "step_4.removed", "step_1.replaced", "mine.partial"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "x").write_text("x")
    (tmp_path / "latest.partial").write_text("step_1")
    clean(tmp_path, [tmp_path / "step_3.partial"])
    assert names(tmp_path) == ["mine.partial", "step_1", "step_3.partial"]


def test_a_checkpoint_whose_replacement_did_not_come_gets_its_name_back(tmp_path: Path) -> None:
    (tmp_path / "step_5.replaced").mkdir()
    (tmp_path / "step_5.partial").mkdir()
    clean(tmp_path)
    assert names(tmp_path) == ["step_5"]


def test_removing_survives_whatever_is_there(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "step_1").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "step_2.partial").write_text("a file")
    (tmp_path / "step_3.removed" / "deep").mkdir(parents=True)
    (tmp_path / "step_3").mkdir()
    for name in ("step_1", "step_2.partial", "step_3", "step_4", "step_5.partial", "elsewhere/step_6/step_7.partial"):
        remove(tmp_path / name)
    assert names(tmp_path) == ["elsewhere"]


def test_the_newest_and_the_best_stay() -> None:
    scores = {10: 0.9, 20: 0.7, 30: 0.8, 40: 0.1, 50: 0.2}
    assert kept(scores, keep_last=2, keep_best=0) == {40, 50}
    assert kept(scores, keep_last=2, keep_best=2) == {10, 30, 40, 50}
    assert kept(scores, keep_last=9, keep_best=9) == set(scores)
    assert kept({10: 0.1, 20: 0.9}, keep_last=1, keep_best=1) == {20}


def test_no_score_is_never_best_and_the_newer_wins_a_tie() -> None:
    assert by_score({1: None, 2: -5.0, 3: None, 4: -5.0, 5: 0.0}) == [5, 4, 2]
    assert kept({1: None, 2: None}, keep_last=1, keep_best=1) == {2}
