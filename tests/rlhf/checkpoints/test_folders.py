from __future__ import annotations

from pathlib import Path

from rlhf.checkpoints.folders import clean, committed, remove
from tests.rlhf.checkpoints.making import names


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
