from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from rlhf.checkpoints.store import CheckpointStore
from rlhf.errors import MachineryError, RLHFError, UserError
from rlhf.storage.jsonl import append_line, read_lines
from rlhf.tracking import run_folder
from rlhf.tracking.run_folder import RunFolder


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


@pytest.mark.parametrize(
    ("content", "what"),
    [
        ("{", "is not JSON"),
        ("[]", "holds list and not dict"),
        ("{}", "has no digest"),
        ('{"digest": 3}', "has no digest"),
        (None, "cannot be read: Is a directory"),
    ],
)
def test_a_damaged_mark_is_refused(tmp_path: Path, content: str | None, what: str) -> None:
    """Whether a finished stage is trained again is the user's decision."""
    RunFolder.create(tmp_path, "sft", "one", "abc").finish({})
    mark = tmp_path / "sft" / "done.json"
    mark.unlink()
    if content is None:
        mark.mkdir()
    else:
        mark.write_text(content)
    for _ in range(2):  # the first attempt does not keep the lock
        with pytest.raises(UserError, match=what) as caught:
            RunFolder.create(tmp_path, "sft", "two", "abc")
        assert str(mark) in caught.value.what and "delete it" in caught.value.fix
    assert (tmp_path / "sft" / "config.yaml").read_text() == "one"


@pytest.mark.parametrize("key", ["data", "model"])
@pytest.mark.parametrize("value", [3, [3], [{"file": 3}], [{"name": "../x", "bytes": 1, "sha256": "0" * 64}]])
def test_a_mark_with_wrong_lists_is_refused(tmp_path: Path, key: str, value: object) -> None:
    run = RunFolder.create(tmp_path, "sft", "", "abc")
    run.finish({})
    (run.path / "done.json").write_text(json.dumps({"digest": "abc", key: value}))
    with pytest.raises(UserError, match="done.json does not list"):
        run.finished_data() if key == "data" else run.finished_model()


@pytest.mark.parametrize("content", [b"", b"\xff", b"[]"])
def test_a_damaged_summary_is_refused(tmp_path: Path, content: bytes) -> None:
    run = RunFolder.create(tmp_path, "sft", "", "abc")
    run.finish({"loss": 1.0})
    assert run.read_summary() == {"loss": 1.0}
    run.summary.write_bytes(content)
    with pytest.raises(UserError, match=r"summary\.json") as caught:
        run.read_summary()
    assert f"delete {run.path}" in caught.value.fix


def finished_with_model(root: Path) -> RunFolder:
    run = RunFolder.create(root, "sft", "", "abc")
    with run.writing_model() as folder:
        (folder / "model.safetensors").write_bytes(b"weights")
        (folder / "sub").mkdir()
        (folder / "sub" / "tokenizer.json").write_text("{}")
    run.finish({})
    return run


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (lambda model: (model / "model.safetensors").write_bytes(b"weight"), "has 6 of 7 bytes"),
        (lambda model: (model / "model.safetensors").write_bytes(b"weighty"), "has other content than was written"),
        (lambda model: (model / "model.safetensors").unlink(), "is missing"),
        (lambda model: (model / "sub" / "tokenizer.json").write_text("[]"), "sub/tokenizer.json has other content"),
        (lambda model: model.rename(model.with_name("moved")), "is missing; 1 more of its 2 files differ"),
        (lambda model: (model / "README.md").write_text("mine"), ""),
        (lambda model: (model / "model.safetensors").touch(), ""),
    ],
)
def test_a_finished_model_that_was_changed_is_refused(
    tmp_path: Path, change: Callable[[Path], object], what: str
) -> None:
    run = finished_with_model(tmp_path)
    run.verify_model()
    change(run.model)
    if not what:
        run.verify_model()
        return
    with pytest.raises(UserError, match=what) as caught:
        run.verify_model()
    assert str(run.model) in caught.value.what and f"delete {run.path}" in caught.value.fix


def test_a_stage_of_an_earlier_version_has_no_hashes(tmp_path: Path) -> None:
    run = finished_with_model(tmp_path)
    done = json.loads((run.path / "done.json").read_text())
    assert [entry["name"] for entry in done.pop("model")] == ["model.safetensors", "sub/tokenizer.json"]
    (run.path / "done.json").write_text(json.dumps(done))
    (run.model / "model.safetensors").write_bytes(b"other")
    run.verify_model()
    assert run.finished_model() == () and run.is_finished("abc")


def test_a_model_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path, "sft", "", "abc")
    with run.writing_model() as folder:
        (folder / "model.safetensors").write_text("w")
        assert not run.model.exists()
    assert (run.model / "model.safetensors").read_text() == "w"
    assert not (run.path / "model.partial").exists()


def test_a_folder_without_weights_is_not_a_model(tmp_path: Path) -> None:
    """They were written on another node, whose folder of that name is another."""
    run = RunFolder.create(tmp_path, "sft", "", "abc")
    with pytest.raises(UserError, match="set runs_dir to a folder that all nodes share"), run.writing_model() as folder:
        (folder / "tokenizer.json").write_text("{}")
    assert not run.model.exists()


def test_a_model_that_fails_half_way_is_not_a_model(tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path, "sft", "", "abc")
    with pytest.raises(RuntimeError, match="disk"), run.writing_model():
        raise RuntimeError("disk")
    assert not run.model.exists()


def save(run: RunFolder, step: int) -> None:
    with run.writing_best(step) as folder:
        (folder / "model.safetensors").write_text(f"of step {step}")


def test_a_best_model_is_whole_and_those_before_it_go_only_on_request(tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path, "ppo", "", "abc")
    save(run, 0)
    with run.writing_best(10) as folder:
        (folder / "model.safetensors").write_text("of st")
        assert not (run.best / "step_10").exists()
    assert (run.best / "step_0" / "model.safetensors").read_text() == "of step 0"
    with pytest.raises(RuntimeError, match="disk"), run.writing_best(20):
        raise RuntimeError("disk")
    assert not (run.best / "step_20").exists()
    run.prune_best(10)
    assert [path.name for path in run.best.glob("step_*") if not path.suffix] == ["step_10"]
    assert (run.best / "step_10" / "model.safetensors").read_text() == "of st"


def test_the_best_model_becomes_the_model(tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path, "ppo", "", "abc")
    save(run, 0)
    save(run, 10)
    run.keep_best(10)
    assert (run.model / "model.safetensors").read_text() == "of step 10"
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


def test_an_unwritable_folder_is_a_user_error(tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("a file where a folder should be")
    with pytest.raises(UserError, match="cannot write") as caught:
        RunFolder.create(tmp_path / "runs" / "demo", "sft", "", "abc")
    assert "runs_dir" in caught.value.fix


def interrupted(root: Path) -> RunFolder:
    """A run that was killed one step after its checkpoint of step 2."""
    run = RunFolder.create(root, "ppo", "old", "abc")
    for step in (0, 1):
        append_line(run.metrics, {"step": step})
        append_line(run.events, {"kind": "one"})
    store = CheckpointStore(run.checkpoints, 1, 0)
    store.begin(2)
    store.commit(2, [], run.sizes(), "old", None)
    append_line(run.metrics, {"step": 2})
    append_line(run.samples, {"step": 2})
    append_line(run.events, {"kind": "two"})
    with run.metrics.open("a") as file:
        file.write('{"st')
    run.release()
    return run


def test_an_attempt_with_a_checkpoint_resumes_in_its_folder(tmp_path: Path) -> None:
    interrupted(tmp_path)
    run = RunFolder.create(tmp_path, "ppo", "new", "xyz")
    assert run.resumes
    assert run.config.read_text() == "old"  # until the caller has compared
    found = CheckpointStore(run.checkpoints, 1, 0).latest()
    assert found is not None and found.path == run.path / "checkpoints" / "step_2"
    run.accept("new")
    assert run.config.read_text() == "new"
    assert run.rewind({name: found.state()[name] for name in ("metrics.jsonl", "samples.jsonl")}, 2) == ()
    assert [row["step"] for row in read_lines(run.metrics)] == [0, 1]
    assert run.samples.read_text() == ""
    assert [row["kind"] for row in read_lines(run.events)] == ["one", "one", "two"]
    with pytest.raises(UserError, match="in use by process"):
        RunFolder.create(tmp_path, "ppo", "", "abc")
    run.release()
    assert sorted(path.name for path in tmp_path.iterdir()) == [".ppo.lock", "ppo"]


@pytest.mark.parametrize("name", ["metrics.jsonl", "logs/policy-0.log"])
def test_files_of_another_user_are_refused_before_the_run_goes_on(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = interrupted(tmp_path)
    (file := run.path / name).touch()
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != file)
    with pytest.raises(UserError, match="cannot write to") as caught:
        RunFolder.create(tmp_path, "ppo", "new", "abc")
    assert str(file) in caught.value.why
    monkeypatch.undo()
    assert RunFolder.create(tmp_path, "ppo", "new", "abc").resumes


def test_without_a_committed_checkpoint_an_attempt_is_moved_aside(tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path, "ppo", "old", "abc")
    CheckpointStore(run.checkpoints, 1, 0).begin(5)
    run.release()
    again = RunFolder.create(tmp_path, "ppo", "new", "abc")
    assert not again.resumes and not again.checkpoints.exists()
    assert (tmp_path / "ppo.interrupted-1" / "config.yaml").read_text() == "old"


def test_a_checkpoint_that_was_killed_while_it_was_replaced_is_gone_on_from(tmp_path: Path) -> None:
    checkpoints = interrupted(tmp_path).checkpoints
    (checkpoints / "step_2").rename(checkpoints / "step_2.replaced")
    assert RunFolder.create(tmp_path, "ppo", "new", "abc").resumes
    assert (checkpoints / "step_2" / "manifest.json").exists()


def test_a_finished_run_does_not_go_on(tmp_path: Path) -> None:
    interrupted(tmp_path)
    run = RunFolder.create(tmp_path, "ppo", "old", "abc")
    run.finish({})
    again = RunFolder.create(tmp_path, "ppo", "old", "abc")
    assert again.is_finished("abc") and not again.resumes


def test_files_that_lost_lines_are_refused_and_none_is_cut(tmp_path: Path) -> None:
    run = interrupted(tmp_path)
    whole = run.sizes()
    assert whole == {"metrics.jsonl": len('{"step": 1}\n' * 3 + '{"st'), "samples.jsonl": len('{"step": 2}\n')}
    run.samples.write_bytes(b"12345")
    with pytest.raises(UserError, match="samples.jsonl has 5 of 12 bytes") as caught:
        run.rewind(whole | {"metrics.jsonl": 1}, 2)
    assert f"delete {run.checkpoints}" in caught.value.fix
    assert run.metrics.stat().st_size == whole["metrics.jsonl"]


def test_a_deleted_record_is_begun_anew_and_what_it_lacks_is_known(tmp_path: Path) -> None:
    run, sizes = interrupted(tmp_path), {"metrics.jsonl": 24, "samples.jsonl": 0}
    run.metrics.unlink()
    [lost] = run.rewind(sizes, 2)
    assert (lost.file, lost.before, run.metrics.exists()) == (run.metrics, 2, False)
    assert f"{run.metrics} was deleted: the rows of steps 0 to 1 are lost" in lost.text
    assert not run.samples.read_text()


def test_a_record_that_was_begun_anew_is_cut_at_the_step_and_not_at_the_size_of_the_deleted_one(tmp_path: Path) -> None:
    """Deleted while the run went on, it is shorter, or longer, than at the checkpoint before."""
    run = interrupted(tmp_path)
    for text, kept in (
        ('{"step": 1}\n{"step": 2}\n', [1]),
        ('{"step": 2}\n', []),
        ('{"step": 1, "loss": 0.123456}\n{"step": 2}\n{"st', [1]),
    ):
        run.metrics.write_text(text)
        [lost] = run.rewind({"metrics.jsonl": 24, "samples.jsonl": 0}, 2)
        assert lost.before == (1 if kept else 2)
        assert [row["step"] for row in read_lines(run.metrics)] == kept
    run.metrics.write_text('{"step": 0}\n{"step": 1}\n')
    run.samples.write_text('{"step": 1}\n{"step": 2}\n')
    assert run.rewind({"metrics.jsonl": 24, "samples.jsonl": 12}, 2) == (), "the first step had no sample"
    assert run.samples.read_text() == '{"step": 1}\n'


def test_a_record_without_rows_of_earlier_steps_is_lost_however_often_the_run_is_rewound(tmp_path: Path) -> None:
    run, sizes = interrupted(tmp_path), {"metrics.jsonl": 24, "samples.jsonl": 0}
    run.metrics.write_text('{"step": 2}\n{"step": 3}\n')
    for _ in range(3):
        [lost] = run.rewind(sizes, 2)
        assert (lost.file, lost.before) == (run.metrics, 2)


def test_rows_that_were_put_back_are_kept(tmp_path: Path) -> None:
    """The checkpoint knows the size of the file that was begun anew, which is shorter."""
    run = interrupted(tmp_path)
    run.metrics.write_text("".join(f'{{"step": {step}}}\n' for step in range(5)))
    assert run.rewind({"metrics.jsonl": 18, "samples.jsonl": 0}, 4) == ()
    assert [row["step"] for row in read_lines(run.metrics)] == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("number", "kind", "way_on"), [(errno.ENOSPC, MachineryError, "Free space"), (errno.EROFS, UserError, "runs_dir")]
)
def test_a_full_disk_is_not_a_wrong_setting(
    number: int, kind: type[RLHFError], way_on: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(path: Path, text: str) -> None:
        raise OSError(number, os.strerror(number), str(path))

    monkeypatch.setattr(run_folder, "write_atomically", fail)
    with pytest.raises(kind, match=way_on):
        RunFolder.create(tmp_path, "ppo", "new", "abc")


def test_an_attempt_that_is_discarded_keeps_its_checkpoints(tmp_path: Path) -> None:
    run = interrupted(tmp_path)
    run.metrics.unlink()
    run.discard()
    assert (run.checkpoints / "step_2").is_dir()
    fresh = RunFolder.create(tmp_path, "sft", "", "abc")
    fresh.discard()
    assert not fresh.path.exists()


def test_the_way_to_train_a_finished_model_further_is_told(tmp_path: Path) -> None:
    for stage in ("reward", "ppo"):
        run = RunFolder.create(tmp_path, stage, "first", "abc")
        run.model.mkdir()
        run.finish({})
    with pytest.raises(UserError) as caught:
        RunFolder.create(tmp_path, "ppo", "second", "xyz")
    further = f"name=<new> ppo.policy_init={tmp_path}/ppo/model rewards.<name>.model={tmp_path}/reward/model"
    assert "restore the values" in caught.value.fix and further in caught.value.fix
