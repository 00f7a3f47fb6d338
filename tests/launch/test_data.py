"""``rlhf data`` shows the data that a run of the recipe would read, and writes no files."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from launch.cli import main
from tests.end_to_end.small import RECIPE, ROOT, make_small_data, overrides


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("data")
    make_small_data(made)
    return made


def files(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*"))


def test_every_stage_is_shown_and_nothing_written(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    before = files(folder)
    assert main(["data", str(RECIPE), *overrides(folder, "shown"), "--rows", "1"]) == 0
    shown = capfd.readouterr().out
    for text in (
        "sft: demonstrations",
        "reward: comparisons",
        "ppo: prompts",
        "demonstrations: 320 rows",
        "⟦",
        "<eos>⟧",
    ):
        assert text in shown
    assert shown.count("row 1 to train on") == 3 and "row 2" not in shown
    assert files(folder) == before


def test_a_recipe_may_have_the_data_of_one_stage_only(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    alone = [*overrides(folder, "alone"), "data.preferences=null", "data.prompts=null"]
    assert main(["data", str(RECIPE), *alone]) == 0
    assert "sft: demonstrations" in (shown := capfd.readouterr().out) and "ppo: prompts" not in shown
    assert main(["data", str(RECIPE), *alone, "--stage", "ppo"]) == 2
    assert "the ppo stage has no data" in capfd.readouterr().err


def test_single_answers_for_kto_are_read_as_such(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    rows = [{"prompt": f"Question {i}?", "completion": f" It is {i}.", "label": i % 2 == 0} for i in range(40)]
    (folder / "kto.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    given = [*overrides(folder, "kto"), f"data.preferences={folder / 'kto.jsonl'}", "data.prompts=null"]
    assert main(["data", str(RECIPE), *given, "data.demonstrations=null", "dpo.loss=kto"]) == 0
    shown = capfd.readouterr().out
    assert "dpo: unpaired labels" in shown and "reward:" not in shown
    assert main(["data", str(RECIPE), *given, "dpo.loss=kto", "--stage", "reward"]) == 2
    assert "needs chosen and rejected" in capfd.readouterr().err


def test_data_that_cannot_be_used_is_refused(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (folder / "judged.jsonl").write_text('{"prompt": "a", "chosen": "b", "rejected": "c", "winner": 2}\n')
    given = [*overrides(folder, "judged"), f"data.preferences={folder / 'judged.jsonl'}", "--stage", "reward"]
    assert main(["data", str(RECIPE), *given]) == 2
    assert "the column 'winner' may say which of the two answers won" in capfd.readouterr().err


def test_a_file_for_all_stages_that_no_stage_would_read_is_refused(
    folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """The recipe has a file for each of them, so that the user's own would be left out."""
    assert main(["data", str(RECIPE), *overrides(folder, "own"), "data.path=mine.jsonl"]) == 2
    assert "data.path = 'mine.jsonl' has no effect" in capfd.readouterr().err


def test_whoever_reads_the_page_may_stop_reading(folder: Path) -> None:
    """As in ``rlhf data RECIPE | head -1``, but without a race: nobody reads at all."""
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "launch.cli", "data", str(RECIPE), *overrides(folder, "piped")]
    done = subprocess.run(command, cwd=ROOT, stdout=writer, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writer)
    assert (done.returncode, done.stderr) == (128 + signal.SIGPIPE, "")
