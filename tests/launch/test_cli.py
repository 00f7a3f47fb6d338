"""Users' mistakes on the command line: exit code 2, a helpful message, no traceback, no files."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from launch.cli import COMMANDS, main
from tests.end_to_end.small import RECIPE, make_small_data, overrides


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with small data."""
    folder = tmp_path_factory.mktemp("data")
    make_small_data(folder)
    return folder


def refused(command: str, folder: Path, runs: Path, *settings: str, capsys: pytest.CaptureFixture[str]) -> str:
    """Run a command that must be refused; returns its output."""
    capsys.readouterr()
    code = main([command, str(RECIPE), *overrides(folder, "refused"), f"runs_dir={runs}", *settings])
    said = capsys.readouterr().err
    assert code == 2, said
    assert "Traceback" not in said
    assert len(said.splitlines()) < 40, "more than a screen"
    assert not runs.exists() or not any(runs.iterdir()), "something was written"
    return said


def test_unknown_key_names_the_nearest(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = refused("ppo", data, tmp_path / "runs", "ppo.kl_coef=0.1", capsys=capsys)
    assert "algorithm.kl_coef" in said


def test_batch_that_does_not_divide(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = refused("pipeline", data, tmp_path / "runs", "ppo.batch_size=15", capsys=capsys)
    assert "ppo.batch_size" in said


def test_more_gpus_than_there_are(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = refused("ppo", data, tmp_path / "runs", "placement.device=cuda", capsys=capsys)
    assert "GPU" in said


def test_missing_data_file(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = refused("sft", data, tmp_path / "runs", f"data.demonstrations={tmp_path}/nothing.jsonl", capsys=capsys)
    assert "nothing.jsonl" in said


def test_empty_data_file(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty.jsonl").write_text("")
    said = refused("sft", data, tmp_path / "runs", f"data.demonstrations={tmp_path}/empty.jsonl", capsys=capsys)
    assert "empty.jsonl" in said


def test_malformed_row_is_named_by_file_and_line(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [json.dumps({"prompt": "a", "completion": " b"}), '{"prompt": "a", "completion": tru', ""]
    (tmp_path / "bad.jsonl").write_text("\n".join(rows))
    settings = (f"data.demonstrations={tmp_path}/bad.jsonl", "data.bad_rows=error")
    said = refused("sft", data, tmp_path / "runs", *settings, capsys=capsys)
    assert "bad.jsonl:2" in said


def test_prompts_longer_than_allowed(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = ("data.long_prompts=error", "data.max_prompt_length=5")
    said = refused("sft", data, tmp_path / "runs", *settings, capsys=capsys)
    assert "5" in said and "prompt" in said


def test_lengths_over_the_models_context(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = refused("ppo", data, tmp_path / "runs", "rollout.max_response_length=500", capsys=capsys)
    assert "max_response_length" in said


def test_model_folder_that_is_not_there(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = ("model.scratch=null", f"model.path={tmp_path}/no_model")
    assert "no_model" in refused("sft", data, tmp_path / "runs", *settings, capsys=capsys)


def test_scorer_that_cannot_be_imported(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "judge.py").write_text("import a_module_that_is_not_there\n")
    said = refused("ppo", data, tmp_path / "runs", f"rewards.judge.function={tmp_path}/judge.py:score", capsys=capsys)
    assert "a_module_that_is_not_there" in said


def test_a_scorer_that_stops_the_run_cannot_be_imported(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "judge.py").write_text("import a_module_that_is_not_there\n")
    settings = [f"early_stop.scorer.function={tmp_path}/judge.py:score", "early_stop.every=1"]
    assert "a_module_that_is_not_there" in refused("ppo", data, tmp_path / "runs", *settings, capsys=capsys)


def test_a_judge_of_the_comparison_cannot_ask_for_rows(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "judge.py").write_text("def score(prompts, responses, rows):\n    return [0.0] * len(rows)\n")
    setting = f"evaluation.scorer={tmp_path}/judge.py:score"
    said = refused("pipeline", data, tmp_path / "runs", setting, capsys=capsys)
    assert "needs data rows" in said and "rows=None" in said


def test_parts_of_a_reward_that_cannot_be(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = ("rewards.a.endpoint.url=ftp://somewhere", "rewards.c.weight=2")
    said = refused("ppo", data, tmp_path / "runs", *settings, capsys=capsys)
    assert "2 problems" in said
    for expected in ("rewards.a.endpoint.url", "rewards.c has none of model, function, endpoint"):
        assert expected in said
    assert "gone.py" in refused("ppo", data, tmp_path / "runs", "rewards.b.function=gone.py:f", capsys=capsys)


def test_folder_that_cannot_be_written(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = main(["sft", str(RECIPE), *overrides(data, "refused"), "runs_dir=/proc/runs"])
    said = capsys.readouterr().err
    assert code == 2 and "/proc/runs" in said


@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_help_shows_an_example(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main([command, "--help"])
    assert stopped.value.code == 0
    assert f"example: rlhf {command} r" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["pppo"], "No such command 'pppo'. Did you mean 'ppo'?"),
        (["ppo", "r.yaml", "--stpes", "3"], "No such option: --stpes"),
        (["ppo"], "Missing argument 'RECIPE'"),
        ([], "Missing command"),
        (["plan", "r.yaml"], "Missing option '--cluster'"),
        (["submit", "r.yaml", "--command", "lunch"], "'lunch' is not one of 'sft', 'reward', 'dpo', 'ppo', 'pipeline'"),
    ],
)
def test_a_wrong_command_line_is_refused(arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    first, fix = capsys.readouterr().err.splitlines()
    assert says in first and first.startswith("rlhf")
    assert fix.startswith("  fix: `rlhf") and "--help" in fix


def test_help_and_completion_are_fast() -> None:
    """Neither loads the libraries of a run, which take seconds."""
    program = "import sys; from launch.cli import main\n" + (
        "try: main(sys.argv[1:])\n"
        "finally: print([name for name in ('torch', 'ray', 'vllm', 'transformers', 'numpy') if name in sys.modules])"
    )
    command = [sys.executable, "-c", program]
    shown = subprocess.run([*command, "ppo", "--help"], capture_output=True, text=True, check=True)
    assert shown.stdout.endswith("\n[]\n")
    bash = {"_RLHF_COMPLETE": "complete_bash", "COMP_WORDS": "rlhf submit --no", "COMP_CWORD": "2"}
    completed = subprocess.run(command, capture_output=True, text=True, check=True, env={**os.environ, **bash})
    assert completed.stdout == "--no-wait\n[]\n"
