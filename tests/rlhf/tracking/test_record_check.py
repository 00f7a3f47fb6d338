"""A damaged file of a stage's folder is named before anything starts, whichever it is and however it is damaged."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rlhf.errors import UserError
from rlhf.evaluation.comparison import write_answers
from rlhf.tracking.metric_rows import read_metric_rows
from rlhf.tracking.record_check import FILES, check_first_answers, check_kinds, check_record
from rlhf.tracking.run_folder import RunFolder

METRICS = '{"step": 0, "train/loss": 2.5}\n{"step": 1, "train/loss": null}\n'
SAMPLES = '{"step": 0, "prompt": "p", "response": "r"}\n'
NAMED = ("config", "metrics", "samples", "events", "trace", "summary", "before", "after")


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    """A stage's folder with all that is read back."""
    run = RunFolder(tmp_path / "runs", "ppo")
    for folder in (run.path, run.logs, run.checkpoints):
        folder.mkdir(parents=True)
    run.metrics.write_text(METRICS)
    run.samples.write_text(SAMPLES)
    run.before.write_text(json.dumps(["a", "b"]))
    run.after.write_text(json.dumps(["c", "d"]))
    write_answers(run.path, ["p", "q"], ["a", "b"], ["c", "d"])
    return run


def sizes(run: RunFolder) -> dict[str, int]:
    return {file.name: file.stat().st_size for file in (run.metrics, run.samples)}


def test_what_a_run_wrote_passes(run: RunFolder) -> None:
    check_kinds(run)
    check_record(run)
    check_record(run, sizes(run))


def test_a_new_folder_passes(tmp_path: Path) -> None:
    check_kinds(RunFolder(tmp_path, "sft"))
    check_record(RunFolder(tmp_path, "sft"))


@pytest.mark.parametrize("name", [*NAMED, *FILES])
def test_a_folder_instead_of_a_file(run: RunFolder, name: str) -> None:
    path: Path = getattr(run, name) if name in NAMED else run.path / name
    path.unlink(missing_ok=True)
    path.mkdir(parents=True)
    with pytest.raises(UserError, match="is a folder, and the run has a file of this name") as caught:
        check_kinds(run)
    assert str(path) in caught.value.what and caught.value.fix


@pytest.mark.parametrize("name", ["logs", "model", "best", "checkpoints"])
def test_a_file_instead_of_a_folder(run: RunFolder, name: str) -> None:
    path: Path = getattr(run, name)
    if path.is_dir():
        path.rmdir()
    path.touch()
    with pytest.raises(UserError, match="is a file, and the run has a folder of this name") as caught:
        check_kinds(run)
    assert str(path) in caught.value.what


def test_a_file_instead_of_the_stages_folder(tmp_path: Path) -> None:
    (tmp_path / "sft").touch()
    with pytest.raises(UserError, match="sft is a file"):
        check_kinds(RunFolder(tmp_path, "sft"))


@pytest.mark.parametrize(
    ("name", "content", "what"),
    [
        ("metrics", "{\n", "has no JSON object in line 1"),
        ("metrics", "\0\0\0\n", "has no JSON object in line 1"),
        ("metrics", "3\n", "has no JSON object in line 1"),
        ("metrics", METRICS + '{"train/loss": 1.0}\n', "has no metrics of a step in line 3"),
        ("metrics", '{"step": null}\n', "has no metrics of a step in line 1"),
        ("metrics", '{"step": 1.5}\n', "has no metrics of a step in line 1"),
        ("metrics", '{"step": 0, "train/loss": "low"}\n', "has no metrics of a step in line 1"),
        ("metrics", '{"step": 0, "train/loss": [1]}\n', "has no metrics of a step in line 1"),
        ("metrics", '{"step": 0, "train/loss": true}\n', "has no metrics of a step in line 1"),
        ("samples", "[]\n", "has no JSON object in line 1"),
        ("samples", SAMPLES + '{"step": "0"}\n', "has no sample of a step in line 2"),
        ("before", "", "is not JSON"),
        ("before", '["a", ', "is not JSON"),
        ("before", "{}", "holds dict and not list"),
        ("before", '["a", 3]', "holds something else than texts"),
        ("after", "null", "holds NoneType and not list"),
        ("after", "[[]]", "holds something else than texts"),
    ],
)
def test_damaged_content_of_a_stage_that_resumes(run: RunFolder, name: str, content: str, what: str) -> None:
    path: Path = getattr(run, name)
    path.write_text(content)
    with pytest.raises(UserError, match=what) as caught:
        check_record(run, sizes(run))
    assert str(path) in caught.value.what and caught.value.fix


@pytest.mark.parametrize(
    "row", ['{"prompt": "p", "before": "a"}', '{"prompt": "p", "before": "a", "after": null}', "3"]
)
def test_damaged_answers_of_a_finished_stage(run: RunFolder, row: str) -> None:
    (run.path / "answers.jsonl").write_text(f"{row}\n")
    with pytest.raises(UserError, match=r"answers\.jsonl .* in line 1"):
        check_record(run)


def test_what_was_written_after_the_checkpoint_is_not_read(run: RunFolder) -> None:
    """A power loss may leave anything there, and it is removed when the stage resumes."""
    until = sizes(run)
    for path in (run.metrics, run.samples):
        path.write_bytes(path.read_bytes() + b"\0\0\0\n{}\n")
    check_record(run, until)
    with pytest.raises(UserError, match="in line 3"):
        check_record(run)


def test_rows_are_read_as_they_were_written(run: RunFolder, tmp_path: Path) -> None:
    assert read_metric_rows(run.metrics) == [{"step": 0, "train/loss": 2.5}, {"step": 1, "train/loss": None}]
    assert read_metric_rows(run.metrics, len(METRICS) // 2 + 2) == [{"step": 0, "train/loss": 2.5}]
    assert read_metric_rows(tmp_path / "none.jsonl") == []


def test_a_folder_of_that_name_holds_no_rows(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be read: Is a directory"):
        read_metric_rows(tmp_path)


def test_first_answers_that_were_replaced_or_removed_are_refused(run: RunFolder) -> None:
    """They can no longer be made, and fewer of them would compare fewer prompts."""
    then = run.sizes()
    check_first_answers(run, then)
    check_first_answers(run, sizes(run))  # a checkpoint before there were any
    run.before.write_text(json.dumps(["a"]))
    with pytest.raises(UserError, match=r"before\.json has 5 bytes, and had 10 at the checkpoint") as caught:
        check_first_answers(run, then)
    assert f"delete {run.path}" in caught.value.fix
    run.before.unlink()
    with pytest.raises(UserError, match="has 0 bytes"):
        check_first_answers(run, then)
