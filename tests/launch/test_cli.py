"""Users' mistakes on the command line: exit code 2, a helpful message, no traceback, no files."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import pytest

from actors.session import Session
from launch.cli import COMMANDS, CommandGroup, main
from rlhf.config.load import to_yaml
from rlhf.errors import UserError
from rlhf.tracking.run_folder import RunFolder
from tests.end_to_end.small import RECIPE, make_small_data, overrides


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with small data."""
    folder = tmp_path_factory.mktemp("data")
    make_small_data(folder)
    return folder


FILES = {
    "empty.jsonl": "",
    "bad.jsonl": '{"prompt": "a", "completion": " b"}\n{"prompt": "a", "completion": tru\n',
    "no_import.py": "import a_module_that_is_not_there\n",
    "alarm.py": "import signal\nsignal.signal(signal.SIGUSR2, signal.SIG_DFL)\n"
    "def score(prompts, responses):\n    return [0.0] * len(prompts)\n",
    "needs_rows.py": "def score(prompts, responses, rows):\n    return [0.0] * len(rows)\n",
}


@pytest.mark.parametrize(
    ("command", "settings", "expected"),
    [
        pytest.param("ppo", ["ppo.kl_coef=0.1"], ["algorithm.kl_coef"], id="unknown key: the nearest is named"),
        pytest.param("pipeline", ["ppo.batch_size=15"], ["ppo.batch_size"], id="indivisible batch"),
        pytest.param("ppo", ["placement.device=cuda"], ["GPU"], id="too few GPUs"),
        pytest.param("sft", ["data.demonstrations={folder}/none.jsonl"], ["none.jsonl"], id="missing data file"),
        pytest.param("sft", ["data.demonstrations={folder}/empty.jsonl"], ["empty.jsonl"], id="empty data file"),
        pytest.param(
            "sft",
            ["data.demonstrations={folder}/bad.jsonl", "data.bad_rows=error"],
            ["bad.jsonl:2"],
            id="malformed row: file and line are named",
        ),
        pytest.param(
            "sft", ["data.long_prompts=error", "data.max_prompt_length=5"], ["5", "prompt"], id="long prompts"
        ),
        pytest.param(
            "ppo", ["rollout.max_response_length=500"], ["max_response_length"], id="lengths over the context"
        ),
        pytest.param(
            "sft", ["model.scratch=null", "model.path={folder}/no_model"], ["no_model"], id="missing model folder"
        ),
        pytest.param(
            "ppo",
            ["rewards.judge.function={folder}/no_import.py:score"],
            ["a_module_that_is_not_there"],
            id="reward function that cannot be imported",
        ),
        pytest.param(
            "ppo",
            ["rewards.judge.function={folder}/alarm.py:score"],
            ["main thread", "alarm.py:2", "timeout_seconds=None"],
            id="reward function that can be imported in a main thread alone",
        ),
        pytest.param(
            "ppo",
            ["early_stop.scorer.function={folder}/no_import.py:score", "early_stop.every=1"],
            ["a_module_that_is_not_there"],
            id="held-out scorer that cannot be imported",
        ),
        pytest.param(
            "pipeline",
            ["evaluation.scorer={folder}/needs_rows.py:score"],
            ["needs data rows", "rows=None"],
            id="judge of the comparison that needs rows",
        ),
        pytest.param(
            "ppo",
            ["rewards.a.endpoint.url=ftp://somewhere", "rewards.c.weight=2"],
            ["2 problems", "rewards.a.endpoint.url", "rewards.c has none of model, function, endpoint"],
            id="two invalid rewards",
        ),
        pytest.param("ppo", ["rewards.b.function=gone.py:f"], ["gone.py"], id="missing reward function"),
    ],
)
def test_invalid_settings_are_refused(
    command: str,
    settings: list[str],
    expected: list[str],
    data: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name, text in FILES.items():
        (tmp_path / name).write_text(text)
    runs = tmp_path / "runs"
    changed = [f"runs_dir={runs}", *(setting.format(folder=tmp_path) for setting in settings)]
    code = main([command, str(RECIPE), *overrides(data, "refused"), *changed])
    message = capsys.readouterr().err
    assert code == 2, message
    assert [text for text in expected if text not in message] == []
    assert "Traceback" not in message
    assert len(message.splitlines()) < 40, "more than a screen"
    assert not runs.exists() or not any(runs.iterdir()), "something was written"


@pytest.mark.parametrize("writes", [False, True])
def test_input_that_the_actors_refuse_leaves_nothing_but_what_was_there(
    writes: bool, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuses(session: Session, stage: str) -> None:
        if writes:
            (session.root / "other stage").mkdir()
        raise UserError("the model fails its examination")

    monkeypatch.setattr("actors.cluster.cluster", lambda *_: nullcontext())
    monkeypatch.setattr("actors.pipeline.run_stage", refuses)
    assert main(["sft", str(RECIPE), *overrides(data, "refused"), f"runs_dir={tmp_path / 'runs'}"]) == 2
    assert "the model fails its examination" in capsys.readouterr().err
    assert (tmp_path / "runs").exists() == writes


def finish(session: Session, stage: str) -> None:
    """Leave a stage's folder as a run that is over leaves it, with a tokenizer and an empty file for a model."""
    digest, files = session.digest(stage), session.files_of(stage)
    run = RunFolder.create(session.root, stage, to_yaml(session.recipe), digest, files)
    session.tokenizer.save_pretrained(run.model)
    (run.model / "model.safetensors").touch()
    run.finish({})


def test_a_finished_stage_starts_no_ray_and_a_pipeline_with_more_to_do_starts_it(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    starts: list[str] = []
    command = [str(RECIPE), *overrides(data, "finished"), f"runs_dir={tmp_path}"]
    monkeypatch.setattr("actors.cluster.cluster", lambda *_: nullcontext(starts.append("Ray")))
    monkeypatch.setattr("actors.pipeline.run_pipeline", lambda session: None)
    with monkeypatch.context() as first:
        first.setattr("actors.pipeline.run_stage", finish)
        assert main(["sft", *command]) == 0
    assert len(starts) == 1
    assert main(["sft", *command]) == 0
    assert len(starts) == 1 and "sft: finished before" in capfd.readouterr().out
    assert main(["pipeline", *command]) == 0
    assert len(starts) == 2


@pytest.mark.parametrize(
    ("name", "damage", "expected"),
    [
        pytest.param("sft/model/tokenizer.json", lambda path: path.write_text("{}"), "was changed", id="altered model"),
        pytest.param("sft/model/tokenizer.json", Path.unlink, "is missing", id="incomplete model"),
        pytest.param("sft/done.json", lambda path: path.write_text("{"), "is not JSON", id="damaged mark"),
        pytest.param("sft/done.json", lambda path: (path.unlink(), path.mkdir()), "Is a directory", id="mark: folder"),
        pytest.param("sft/summary.json", lambda path: path.write_bytes(b"\xff"), "is not UTF-8", id="damaged summary"),
        pytest.param("base/made-from", lambda path: path.write_bytes(b"\xff"), "is not UTF-8", id="damaged made-from"),
        pytest.param("base/model.safetensors", Path.unlink, "is missing", id="incomplete initial model"),
        pytest.param(
            "base", lambda path: (shutil.rmtree(path), path.touch()), "is a file", id="file in place of the model"
        ),
    ],
)
def test_damaged_files_of_a_finished_stage_are_named(
    name: str,
    damage: Callable[[Path], object],
    expected: str,
    data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    command = ["sft", str(RECIPE), *overrides(data, "finished"), f"runs_dir={tmp_path}"]
    monkeypatch.setattr("actors.cluster.cluster", lambda *_: nullcontext())
    with monkeypatch.context() as first:
        first.setattr("actors.pipeline.run_stage", finish)
        assert main(command) == 0
    path = tmp_path / "finished" / name
    damage(path)
    capfd.readouterr()
    assert main(command) == 2
    message = capfd.readouterr().err
    assert str(path) in message and expected in message and "fix: " in message
    assert "Traceback" not in message


def test_folder_that_cannot_be_written(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = main(["sft", str(RECIPE), *overrides(data, "refused"), "runs_dir=/proc/runs"])
    assert code == 2 and "/proc/runs" in capsys.readouterr().err


GROUPED = [
    f"{name} {word}" for name, group in COMMANDS.items() if isinstance(group, CommandGroup) for word in group.commands
]


@pytest.mark.parametrize("command", sorted([*COMMANDS, *GROUPED]))
def test_help_shows_an_example(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main([*command.split(), "--help"])
    assert stopped.value.code == 0
    assert f"example: rlhf {command} " in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["pppo"], "No such command 'pppo'. Did you mean 'ppo'?"),
        (["ppo", "r.yaml", "--stpes", "3"], "No such option: --stpes"),
        (["ppo"], "Missing argument 'RECIPE'"),
        ([], "Missing command"),
        (["plan", "r.yaml"], "Missing option '--cluster'"),
        (["feedback"], "Missing command"),
        (["feedback", "serv"], "No such command 'serv'. Did you mean 'serve'?"),
        (["feedback", "token", "votes.db"], "Missing argument 'ALIAS'"),
        (["submit", "r.yaml", "--command", "lunch"], "'lunch' is not one of 'sft', 'reward', 'dpo', 'ppo', 'pipeline'"),
    ],
)
def test_a_wrong_command_line_is_refused(
    arguments: list[str], expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    first, fix = capsys.readouterr().err.splitlines()
    assert expected in first and first.startswith("rlhf")
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


def test_a_command_whose_output_is_closed_does_its_work() -> None:
    plan = 'exec "$0" -m launch.cli plan "$1" --cluster nodes=1,gpus=8,gpu=h100-80 >&- 2>&-'
    assert subprocess.run(["bash", "-c", plan, sys.executable, str(RECIPE)], check=False).returncode == 0


@pytest.mark.parametrize(
    ("arguments", "code"),
    [(["--help"], 3), (["plan", str(RECIPE), "--cluster", "nodes=1,gpus=8,gpu=h100-80"], 3), (["pppo"], 2)],
)
def test_output_on_a_full_device_is_one_line_and_no_traceback(arguments: list[str], code: int) -> None:
    command = [sys.executable, "-c", "import sys; from launch.cli import main; sys.exit(main(sys.argv[1:]))"]
    with open("/dev/full", "w") as full:
        done = subprocess.run([*command, *arguments], stdout=full, stderr=subprocess.PIPE, text=True, check=False)
        silent = subprocess.run([*command, *arguments], stdout=full, stderr=full, check=False)
    assert (done.returncode, silent.returncode) == (code, code), done.stderr
    assert "Traceback" not in done.stderr and "Exception ignored" not in done.stderr
    if code == 3:
        assert done.stderr.splitlines()[0].endswith("give the command again.") and len(done.stderr.splitlines()) == 1
        assert "the output cannot be written: No space left on device" in done.stderr


def test_a_setting_that_is_written_as_an_option_is_shown_as_a_setting(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ppo", "recipes/quickstart.yaml", "--ppo.steps", "2"]) == 2
    assert "fix: settings are written without dashes: ppo.steps=2" in capsys.readouterr().err


def test_a_missing_option_is_shown_by_an_example(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "recipes/quickstart.yaml"]) == 2
    assert COMMANDS["plan"].example in capsys.readouterr().err
