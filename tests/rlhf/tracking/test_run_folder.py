from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from rlhf.errors import UserError
from rlhf.tracking.run_folder import RunFolder, write_atomically


def test_a_stage_from_start_to_finish(tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path / "demo", "sft", "name: demo\n", "abc")
    assert run.path == tmp_path / "demo" / "sft"
    assert run.config.read_text() == "name: demo\n"
    assert run.logs.is_dir()
    assert not run.is_finished("abc")
    run.finish({"loss": 0.25, "gap": float("nan")})
    assert run.is_finished("abc")
    assert not run.is_finished("other")
    assert json.loads(run.summary.read_text()) == {"loss": 0.25, "gap": None}


def test_a_finished_stage_is_handed_back_untouched(tmp_path: Path) -> None:
    RunFolder.create(tmp_path, "sft", "first", "abc").finish({})
    again = RunFolder.create(tmp_path, "sft", "second", "abc")
    assert again.is_finished("abc")
    assert again.config.read_text() == "first"


def test_a_finished_stage_of_another_configuration_is_refused(tmp_path: Path) -> None:
    RunFolder.create(tmp_path, "sft", "first", "abc").finish({})
    with pytest.raises(UserError, match="another configuration") as caught:
        RunFolder.create(tmp_path, "sft", "second", "xyz")
    assert "name=" in caught.value.fix
    assert "delete" in caught.value.fix
    assert (tmp_path / "sft" / "config.yaml").read_text() == "first"


def test_unfinished_attempts_are_kept_aside_in_order(tmp_path: Path) -> None:
    for attempt in ("one", "two", "three"):
        run = RunFolder.create(tmp_path, "ppo", attempt, "abc")
        assert [path.name for path in run.path.iterdir()] != []
        run.release()
    names = ("ppo.interrupted-1", "ppo.interrupted-2", "ppo")
    assert [(tmp_path / name / "config.yaml").read_text() for name in names] == ["one", "two", "three"]


def test_an_unreadable_mark_counts_as_unfinished(tmp_path: Path) -> None:
    RunFolder.create(tmp_path, "sft", "one", "abc").finish({})
    (tmp_path / "sft" / "done.json").write_text("{")
    run = RunFolder.create(tmp_path, "sft", "two", "abc")
    assert not run.is_finished("abc")
    assert (tmp_path / "sft.interrupted-1" / "config.yaml").read_text() == "one"


def test_a_model_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path, "sft", "", "abc")
    with run.writing_model() as folder:
        (folder / "weights").write_text("w")
        assert not run.model.exists()
    assert (run.model / "weights").read_text() == "w"
    assert not (run.path / "model.partial").exists()


def test_a_model_that_fails_half_way_is_not_a_model(tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path, "sft", "", "abc")
    with pytest.raises(RuntimeError, match="disk"), run.writing_model():
        raise RuntimeError("disk")
    assert not run.model.exists()


def save(run: RunFolder, step: int) -> None:
    with run.writing_best(step) as folder:
        (folder / "weights").write_text(f"of step {step}")


def test_the_best_model_is_replaced_only_by_a_whole_one(tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path, "ppo", "", "abc")
    save(run, 0)
    with run.writing_best(10) as folder:
        (folder / "weights").write_text("of st")
        assert (run.best / "step_0" / "weights").read_text() == "of step 0"
        assert not (run.best / "step_10").exists()
    assert [path.name for path in run.best.iterdir()] == ["step_10"]
    with pytest.raises(RuntimeError, match="disk"), run.writing_best(20):
        raise RuntimeError("disk")
    assert (run.best / "step_10" / "weights").read_text() == "of st"
    assert not (run.best / "step_20").exists()


def test_the_best_model_becomes_the_model(tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path, "ppo", "", "abc")
    save(run, 0)
    save(run, 10)
    run.keep_best(10)
    assert (run.model / "weights").read_text() == "of step 10"
    assert not run.best.exists()
    run.drop_best()  # nothing is left to remove


HOLD = """
import sys
from pathlib import Path
from rlhf.tracking.run_folder import RunFolder
run = RunFolder.create(Path(sys.argv[1]), "sft", "", "abc")
print("held", flush=True)
sys.stdin.read()
"""


def test_two_processes_cannot_share_a_folder_and_death_frees_it(tmp_path: Path) -> None:
    command = [sys.executable, "-c", HOLD, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(UserError, match=f"in use by process {holder.pid} on "):
            RunFolder.create(tmp_path, "sft", "", "abc")
        holder.kill()
    assert not RunFolder.create(tmp_path, "sft", "", "abc").is_finished("abc")


def test_a_place_that_cannot_be_written_is_the_users_to_mend(tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("a file where a folder should be")
    with pytest.raises(UserError, match="cannot write") as caught:
        RunFolder.create(tmp_path / "runs" / "demo", "sft", "", "abc")
    assert "runs_dir" in caught.value.fix


def test_an_atomic_write_replaces_the_whole_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_atomically(path, "a long first text")
    write_atomically(path, "short")
    assert path.read_text() == "short"
    assert [item.name for item in tmp_path.iterdir()] == ["file"]
