"""Academic tasks: the command, its failures, and results as ``lm-eval`` 0.4.13 wrote them."""

from __future__ import annotations

import json
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import yaml

from rlhf.config.schema import ScratchConfig
from rlhf.errors import MachineryError, UserError
from rlhf.evaluation import academic_tasks
from rlhf.evaluation.academic_tasks import AcademicTasksConfig, TaskResult, command_of, read_results, run_tasks
from rlhf.models.scratch import make_scratch

CONFIG = AcademicTasksConfig(models={"base": "m,1", "ppo": "m2"}, tasks=("arc_easy", "own"), folder="tasks", limit=5)
RESULTS = {
    "results": {
        "own": {
            "alias": "own",
            "acc,none": 0.75,
            "acc_stderr,none": 0.25,
            "acc,first-letter": 0.5,
            "acc_stderr,first-letter": 0.125,
            "exact_match,strict-match": 0,
            "exact_match_stderr,strict-match": "N/A",
            "sample_len": 4,
        }
    }
}


def program(folder: Path, monkeypatch: pytest.MonkeyPatch, body: str) -> None:
    """Have a program instead of the package ``lm-eval``."""
    (folder / "stand_in.py").write_text(body)
    monkeypatch.setattr(academic_tasks, "PACKAGE", "stand_in")
    monkeypatch.setenv("PYTHONPATH", str(folder))
    monkeypatch.syspath_prepend(str(folder))


def test_the_command_of_a_model() -> None:
    assert command_of(CONFIG, "m,1", Path("out")) == [
        *(sys.executable, "-m", "lm_eval", "run", "--model", "hf", "--model_args", '{"pretrained": "m,1"}'),
        *("--tasks", "arc_easy,own", "--include_path", "tasks", "--limit", "5", "--batch_size", "8"),
        *("--output_path", "out"),
    ]
    vllm = AcademicTasksConfig(
        models={"base": "m"},
        tasks=("own",),
        backend="vllm",
        model_args={"dtype": "float32"},
        fewshot=0,
        chat_template=True,
    )
    command = command_of(vllm, "m", Path("out"))
    assert '{"pretrained": "m", "dtype": "float32"}' in command and "--apply_chat_template" in command
    assert command[command.index("--num_fewshot") + 1] == "0"
    assert command[command.index("--batch_size") + 1] == "auto"


def test_each_metric_has_its_standard_error() -> None:
    assert list(read_results(RESULTS, "ppo")) == [
        TaskResult(arm="ppo", task="own", metric="acc", value=0.75, stderr=0.25),
        TaskResult(arm="ppo", task="own", metric="acc (first-letter)", value=0.5, stderr=0.125),
        TaskResult(arm="ppo", task="own", metric="exact_match (strict-match)", value=0.0, stderr=None),
    ]


@pytest.mark.skipif(find_spec("lm_eval") is not None, reason="lm-eval is installed")
def test_a_missing_package_is_named_with_its_command() -> None:
    with pytest.raises(UserError, match=r"(?s)needs the package lm-eval.*pip install 'rlhf\[lm-eval\]'"):
        run_tasks(CONFIG)


def test_results_of_all_models_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    body = f"""
import json, pathlib, sys
out = pathlib.Path(sys.argv[sys.argv.index("--output_path") + 1]) / "model"
out.mkdir()
(out / "results_2026.json").write_text({json.dumps(RESULTS)!r})
"""
    program(tmp_path, monkeypatch, body)
    assert [(each.arm, each.metric) for each in run_tasks(CONFIG)][::3] == [("base", "acc"), ("ppo", "acc")]


def test_a_refused_task_is_the_users_with_the_packages_last_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program(tmp_path, monkeypatch, "import sys\nprint('Tasks not found: own')\nsys.exit(1)\n")
    with pytest.raises(UserError, match=r"(?s)exit code 1 on the arm base.*Tasks not found: own.*-m stand_in run"):
        run_tasks(CONFIG)


@pytest.mark.parametrize(
    ("body", "seconds", "message"),
    [
        ("import os, signal\nprint('out of memory')\nos.kill(os.getpid(), signal.SIGKILL)\n", 60.0, "code -9.*out of"),
        ("import time\ntime.sleep(60)\n", 0.5, r"longer than lm_eval.timeout_seconds = 0.5 on the arm base"),
    ],
)
def test_a_killed_or_stuck_program_is_the_machinerys(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, body: str, seconds: float, message: str
) -> None:
    program(tmp_path, monkeypatch, body)
    config = AcademicTasksConfig(models={"base": "m"}, tasks=("own",), timeout_seconds=seconds)
    with pytest.raises(MachineryError, match=message):
        run_tasks(config)


@pytest.mark.skipif(find_spec("lm_eval") is None, reason="lm-eval is not installed: it is optional")
def test_the_package_evaluates_a_model_on_a_local_task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A minute, most of it imports: only the package itself shows that command and results fit it."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    shape = ScratchConfig(hidden_size=64, layers=1, heads=2, vocab_size=300)
    make_scratch(shape, ["Capital: Rome"] * 9, tmp_path / "m", 0)
    rows = [{"question": f"Capital {i}?", "choices": ["Rome", "Milan"], "label": i % 2} for i in range(8)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = {
        "task": "capitals",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(tmp_path / "rows.jsonl")}},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "{{question}}",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": "{{label}}",
        "metric_list": [{"metric": "acc"}],
    }
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "capitals.yaml").write_text(yaml.safe_dump(task))
    folder, models = str(tmp_path / "tasks"), {"base": str(tmp_path / "m")}
    [result] = run_tasks(AcademicTasksConfig(models=models, tasks=("capitals",), folder=folder))
    assert (result.arm, result.task, result.metric) == ("base", "capitals", "acc")
    assert 0 <= result.value <= 1 and result.stderr == pytest.approx((result.value * (1 - result.value) / 7) ** 0.5)
