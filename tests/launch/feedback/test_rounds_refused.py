"""Rounds, reports and evaluations that cannot work are refused before anything starts, and leave no file."""

from __future__ import annotations

from pathlib import Path

import pytest

from launch.cli import main
from rlhf.feedback.records import Answer, Choice, Item, Vote
from rlhf.feedback.store import Store
from tests.end_to_end.small import RECIPE, make_small_data, overrides


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("rounds")
    make_small_data(made)
    return made


@pytest.fixture(scope="module")
def project(folder: Path) -> Path:
    """A project with an item of a round, and a vote on it."""
    path = folder / "votes.db"
    item = Item(id="i", prompt="p", answers=(Answer(text="a"), Answer(text="b")), round="round-1")
    with Store.create(path) as store:
        store.add_items([item])
        store.add_rater("ann", is_imported=True)
        store.import_votes([Vote(id="v", item="i", rater="ann", choice=Choice.TIE)])
    return path


def refused(folder: Path, capfd: pytest.CaptureFixture[str], *words: str) -> str:
    before = sorted(path for path in folder.rglob("*") if "votes.db" not in path.name)
    assert main([words[0], *words[1:]]) == 2
    assert sorted(path for path in folder.rglob("*") if "votes.db" not in path.name) == before
    message = capfd.readouterr().err
    assert "fix: " in message and "Traceback" not in message
    return message


@pytest.mark.parametrize("command", ["sample", "round"])
def test_a_project_that_does_not_exist(command: str, folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    settings = [*overrides(folder, "none"), f"feedback.project={folder / 'missing.db'}"]
    assert "missing.db" in refused(folder, capfd, "feedback", command, str(RECIPE), *settings)


def test_a_run_without_a_model_to_sample_from(folder: Path, project: Path, capfd: pytest.CaptureFixture[str]) -> None:
    settings = [*overrides(folder, "none"), f"feedback.project={project}"]
    message = refused(folder, capfd, "feedback", "sample", str(RECIPE), *settings)
    assert "has no finished model" in message and "rlhf sft" in message


def test_a_round_is_sampled_once(folder: Path, project: Path, capfd: pytest.CaptureFixture[str]) -> None:
    settings = [*overrides(folder, "none"), f"feedback.project={project}", "--round", "round-1"]
    assert "has a round 'round-1'" in refused(folder, capfd, "feedback", "sample", str(RECIPE), *settings)


def test_uncertainty_without_models(folder: Path, project: Path, capfd: pytest.CaptureFixture[str]) -> None:
    settings = [*overrides(folder, "none"), f"feedback.project={project}", "feedback.selection=uncertainty"]
    message = refused(folder, capfd, "feedback", "sample", str(RECIPE), *settings)
    assert "0 models in feedback.ensemble" in message


def test_a_report_on_a_file_without_single_votes(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    message = refused(folder, capfd, "feedback", "report", str(RECIPE), *overrides(folder, "none"))
    assert "is no feedback project" in message


def test_a_reward_model_that_does_not_exist(folder: Path, project: Path, capfd: pytest.CaptureFixture[str]) -> None:
    given = [*overrides(folder, "none"), "--reward-model", str(folder / "nothing"), "--preferences", str(project)]
    assert "nothing" in refused(folder, capfd, "evaluate", str(RECIPE), *given)


def test_an_output_in_a_folder_that_does_not_exist(
    folder: Path, project: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    given = ["--reward-model", str(folder), "--preferences", str(project), "--out", str(folder / "no" / "o.json")]
    message = refused(folder, capfd, "evaluate", str(RECIPE), *overrides(folder, "none"), *given)
    assert "no file can be written there" in message
