"""What ``rlhf submit`` refuses before an upload, what it uploads, and its own output."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from launch import upload
from launch.cli import main, parse
from launch.jobs import ENDED, exit_code
from launch.submit import checked, passed_on
from rlhf.config.load import load_recipe
from rlhf.errors import UserError
from rlhf.feedback.store import Store
from tests.end_to_end.small import RECIPE

FILES = ("votes.jsonl", "code/reward.py", "code/words.py", "code/notes.txt", "model/config.json", "model/.git/index")
SETTINGS = (
    "data.path=votes.jsonl",
    "data.demonstrations=null",
    "data.preferences=null",
    "data.prompts=/shared/prompts.jsonl",
    "reward.ceiling=null",
    "rewards.mine.function=code/reward.py:score",
    "evaluation.scorer=null",
    "model.scratch=null",
    "model.path=./model",
)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user's folder, which is the current folder."""
    for name in FILES:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_what_the_recipe_names_in_this_folder_is_uploaded_and_nothing_else(here: Path, tmp_path: Path) -> None:
    recipe = checked(str(RECIPE), SETTINGS, "pipeline")
    names = {"votes.jsonl", "code/reward.py", "code/words.py", "model/config.json"}
    assert {str(path) for path in upload.stage(recipe, here, tmp_path / "staged")} == names
    there = {str(path.relative_to(tmp_path / "staged")) for path in (tmp_path / "staged").rglob("*") if path.is_file()}
    assert there == {*names, upload.RECIPE}


def test_the_job_is_given_the_whole_recipe(here: Path, tmp_path: Path) -> None:
    recipe = checked(str(RECIPE), [*SETTINGS, "ppo.steps=7"], "pipeline")
    upload.stage(recipe, here, tmp_path / "staged")
    sent = load_recipe(tmp_path / "staged" / upload.RECIPE)
    assert sent == recipe and sent.ppo.steps == 7
    assert sent.placement.ray_address == "auto"
    assert sent.runs_dir == "~/runs", "the job's own folder goes with the job"


def test_a_folder_of_runs_on_shared_storage_stays_what_it_is(here: Path) -> None:
    assert checked(str(RECIPE), [*SETTINGS, "runs_dir=/shared/runs"], "ppo").runs_dir == "/shared/runs"


def test_a_file_above_this_folder_is_refused(here: Path, tmp_path: Path) -> None:
    (here.parent / "outside.jsonl").write_text("")
    with pytest.raises(UserError, match="data.path = '../outside.jsonl' is not below the current folder"):
        upload.stage(checked(str(RECIPE), [*SETTINGS, "data.path=../outside.jsonl"], "sft"), here, tmp_path / "staged")


LINKS: dict[str, tuple[str, str]] = {
    "a file": ("votes.jsonl", "secret"),
    "a file of a folder": ("model/weights.safetensors", "secret"),
    "a folder": ("model/more", "."),
    "a folder's folder": ("model/deep/more", "."),
    "a module beside a function": ("code/helper.py", "secret"),
    "a relative link": ("model/notes.txt", "../../outside/secret"),
}
"""A link in the user's folder, and what it leads to, from a folder outside."""


@pytest.mark.parametrize("name", LINKS)
def test_no_link_leads_out_of_the_folder(name: str, here: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    link, target = LINKS[name]
    outside = here.parent / "outside" if target.startswith("..") else tmp_path_factory.mktemp("outside")
    outside.mkdir(exist_ok=True)
    (outside / "secret").write_text("a key")
    path = here / link
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    path.symlink_to(target if target.startswith("..") else outside / target)
    with pytest.raises(UserError, match=f"{link} is a link to .*, which is not below the current folder") as caught:
        upload.stage(checked(str(RECIPE), SETTINGS, "ppo"), here, here / "staged")
    assert any(key in caught.value.what for key in ("data.path", "model.path", "rewards.mine.function"))
    assert not (here / "staged").exists()


def test_links_within_the_folder_are_followed_once(here: Path, tmp_path: Path) -> None:
    (here / "model" / "again").symlink_to("../model")
    (here / "model" / "copy.json").symlink_to("config.json")
    (here / "model" / "shared").symlink_to("../code")
    recipe = checked(str(RECIPE), SETTINGS, "sft")
    found = {str(path) for path in upload.stage(recipe, here, tmp_path / "staged") if path.parts[0] == "model"}
    shared = {f"model/shared/{name}" for name in os.listdir(here / "code")}
    assert found == {"model/config.json", "model/copy.json", *shared}
    assert not (tmp_path / "staged" / "model" / "copy.json").is_symlink()


def test_a_link_to_nothing_and_a_pipe_are_refused(here: Path, tmp_path: Path) -> None:
    recipe = checked(str(RECIPE), SETTINGS, "sft")
    (here / "model" / "gone").symlink_to("nowhere")
    with pytest.raises(UserError, match="model/gone cannot be read"):
        upload.stage(recipe, here, tmp_path / "staged")
    (here / "model" / "gone").unlink()
    os.mkfifo(here / "model" / "pipe")
    with pytest.raises(UserError, match="model/pipe is neither a file nor a folder"):
        upload.stage(recipe, here, tmp_path / "staged")


def test_a_feedback_project_is_not_uploaded(here: Path, tmp_path: Path) -> None:
    Store.create(here / "votes.db").close()
    recipe = checked(str(RECIPE), [*SETTINGS, "data.preferences=votes.db"], "reward")
    with pytest.raises(UserError, match="data.preferences = 'votes.db' is a feedback project, which is not uploaded"):
        upload.stage(recipe, here, tmp_path / "staged")


def test_more_than_the_limit_is_refused_and_the_largest_file_named(here: Path, tmp_path: Path) -> None:
    os.truncate(here / "votes.jsonl", upload.LIMIT_BYTES + 1)
    with pytest.raises(UserError, match=r"votes.jsonl 64 MiB(.|\n)*storage that the cluster's nodes see"):
        upload.stage(checked(str(RECIPE), SETTINGS, "sft"), here, tmp_path / "staged")
    assert not (tmp_path / "staged").exists()


def test_our_own_packages_are_never_uploaded(here: Path, tmp_path: Path) -> None:
    (here / "rlhf").mkdir()
    (here / "rlhf" / "types.py").write_text("")
    recipe = checked(str(RECIPE), [*SETTINGS, "rewards.mine.function=rlhf.types:score"], "ppo")
    assert Path("rlhf/types.py") not in upload.stage(recipe, here, tmp_path / "staged")


def test_a_wrong_recipe_is_refused_before_a_cluster_is_asked(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    nowhere = "http://127.0.0.1:9"
    assert main(["submit", str(RECIPE), *SETTINGS, "ppo.batch_size=15", "--address", nowhere]) == 2
    assert "ppo.batch_size" in capsys.readouterr().err
    assert main(["submit", str(RECIPE), *SETTINGS, "data.path=none.jsonl", "--address", nowhere]) == 2
    assert "none.jsonl" in capsys.readouterr().err


def test_without_a_cluster_the_message_explains_how_to_start_one(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["submit", "--list", "--address", "http://127.0.0.1:9"]) == 3
    assert "launch/head.sh" in capsys.readouterr().err


def test_one_thing_at_a_time(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["submit"]) == 2
    assert main(["submit", "--list", "--stop", "a-job"]) == 2


def test_settings_stand_anywhere() -> None:
    options = parse(["submit", "--command", "ppo", "r.yaml", "a=b", "--no-wait", "c=d"]).options
    assert (options["recipe"], options["overrides"], options["command"]) == ("r.yaml", ["a=b", "c=d"], "ppo")
    assert options["no_wait"] is True


def test_secrets_are_no_part_of_a_job() -> None:
    environment = {"WANDB_API_KEY": "secret", "HF_TOKEN": "secret", "HF_HUB_OFFLINE": "1", "NCCL_DEBUG": "INFO"}
    passed = {"HF_HUB_OFFLINE": "1", "NCCL_DEBUG": "INFO"}
    assert passed_on([], environment) == passed
    assert passed_on(["MINE"], {**environment, "MINE": "2", "HF_HOME": "/here"}) == {**passed, "MINE": "2"}
    for name in ("WANDB_API_KEY", "HF_TOKEN", "AWS_SECRET_ACCESS_KEY", "DB_PASSWORD"):
        with pytest.raises(UserError, match="may be a secret"):
            passed_on([name], {name: "secret"})


def test_a_variable_that_is_not_set_is_refused() -> None:
    with pytest.raises(UserError, match="NCCL_DEBUG is not set here"):
        passed_on(["NCCL_DEBUG"], {})


def test_how_a_job_ended_is_its_last_word() -> None:
    assert exit_code(f"step 1\n{ENDED}75\n") == 75
    assert exit_code(f"{ENDED}2\nagain\n{ENDED}0\n") == 0
    assert exit_code("step 1\nstep 2") is None
