from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from rlhf.config.named_files import check_data, check_models, check_name, check_path, check_scorer
from rlhf.config.schema import DataConfig, ModelConfig, PPOConfig, Recipe, RewardConfig, ScratchConfig

STAGES = ("sft", "reward", "ppo")


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The tests' current folder: holds ``data/rows.jsonl``, ``judge.py`` and ``model/``."""
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "rows.jsonl").touch()
    (tmp_path / "judge.py").touch()
    (tmp_path / "model").mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def said(problems) -> str:
    return "\n".join(str(problem) for problem in problems)


@pytest.mark.parametrize("name", ["a", "llama-8b_v1.2", "7", "x" * 100])
def test_good_names(name):
    assert not said(check_name(Recipe(name=name)))


@pytest.mark.parametrize("name", ["", " ", "a/b", "..", ".hidden", "-x", "a b", "a\n", "ä", "x" * 101, "a\\b", "a:b"])
def test_names_that_are_no_folder(name):
    assert "cannot be a folder's name" in said(check_name(Recipe(name=name)))


def test_runs_dir_may_be_missing_but_is_no_file():
    assert not said(check_name(Recipe(name="a", runs_dir="new/runs")))
    assert not said(check_name(Recipe(name="a", runs_dir="data")))
    assert "runs_dir = 'judge.py' is not a folder" in said(check_name(Recipe(name="a", runs_dir="judge.py")))
    assert "runs_dir = '' is not a folder" in said(check_name(Recipe(name="a", runs_dir="")))


def data(**paths: str) -> Recipe:
    return Recipe(name="a", data=DataConfig(**paths))


def test_each_stage_needs_data():
    message = said(check_data(data(), STAGES))
    for stage, key in zip(STAGES, ("demonstrations", "preferences", "prompts"), strict=True):
        assert f"the {stage} stage has no data\n  why: neither data.{key} nor data.path is set" in message
    assert not said(check_data(data(path="data/rows.jsonl"), STAGES))
    assert not said(check_data(data(preferences="data/rows.jsonl"), ("reward",)))
    assert "the ppo stage has no data" in said(check_data(data(preferences="data/rows.jsonl"), ("reward", "ppo")))


def test_a_path_that_no_stage_of_the_command_reads_is_not_checked():
    recipe = data(path="gone.jsonl", preferences="data/rows.jsonl")
    assert not said(check_data(recipe, ("reward",)))
    assert said(check_data(recipe, STAGES)).count("there is no such file") == 1


@pytest.mark.parametrize(
    "path",
    [
        "gone.jsonl",
        "gone.jsonl.gz",
        "gone.db",
        "gone.PARQUET",
        "./gone",
        "../gone",
        "/gone",
        "~/gone-from-home",
        "~nobody-of-this-name/rows",
        "a/b/c",
        "data/gone",
        "two words",
        "nul\0l",
        "x" * 5000 + ".json",
    ],
)
def test_missing_local_paths(path):
    message = said(check_data(data(path=path), ("sft",)))
    assert f"data.path = {path!r}: there is no such file or folder" in message and str(Path.cwd()) in message


@pytest.mark.parametrize(
    "url", ["https://example.org/rows.jsonl", "s3://bucket/rows", "https://me:hunter2@example.org/x"]
)
def test_urls_are_refused_without_their_passwords(url):
    message = said(check_data(data(path=url), ("sft",)))
    assert "is a URL" in message and "download it, and set data.path to its path" in message
    assert "hunter2" not in message


@pytest.mark.parametrize("path", ["data/rows.jsonl", "data", "./data", "Anthropic/hh-rlhf", "imdb", "org/name.v2-0.5B"])
def test_present_paths_and_hub_names_pass(path):
    assert not said(check_data(data(path=path), STAGES))


def test_home_folder_is_expanded(folder, monkeypatch):
    monkeypatch.setenv("HOME", str(folder))
    assert not said(check_data(data(path="~/data/rows.jsonl"), ("sft",)))


def test_one_source_for_the_model():
    both = ModelConfig(path="model", scratch=ScratchConfig())
    assert "neither is given" in said(check_models(Recipe(name="a"), ("sft",)))
    assert "both are given" in said(check_models(Recipe(name="a", model=both), ("sft",)))
    for model in (
        ModelConfig(path="model"),
        ModelConfig(path="Qwen/Qwen2.5-0.5B"),
        ModelConfig(scratch=ScratchConfig()),
    ):
        assert not said(check_models(Recipe(name="a", model=model), ("sft",)))


def test_folders_to_start_from_are_there_for_the_stages_that_use_them():
    recipe = Recipe(
        name="a",
        model=ModelConfig(path="./gone"),
        reward=RewardConfig(init="model/gone"),
        ppo=PPOConfig(policy_init="model/gone", critic_init=""),
    )
    assert said(check_models(recipe, ("sft",))).count("no such file or folder") == 2
    assert "reward.init = 'model/gone'" in said(check_models(recipe, ("reward",)))
    message = said(check_models(recipe, ("ppo",)))
    assert "ppo.policy_init = 'model/gone'" in message and "ppo.critic_init is empty" in message


def test_chat_template_is_a_file():
    recipe = Recipe(name="a", model=ModelConfig(path="model", chat_template="judge.py"))
    assert not said(check_models(recipe, ("sft",)))
    for path in ("gone.jinja", "data"):
        broken = replace(recipe, model=replace(recipe.model, chat_template=path))
        assert f"model.chat_template = '{path}': there is no such file" in said(check_models(broken, ("sft",)))


@pytest.mark.parametrize("spec", ["judge.py:score", "./judge.py:score", "package.module:score", "module:_score"])
def test_scorers_that_may_exist(spec):
    assert not said(check_scorer("evaluation.scorer", spec))


@pytest.mark.parametrize(
    ("spec", "reason"),
    [
        ("judge.py", "does not name a function"),
        ("judge.py:", "does not name a function"),
        ("judge.py:2nd", "does not name a function"),
        ("judge.py:a.b", "does not name a function"),
        ("", "does not name a function"),
        (":score", "names neither a module nor a Python file"),
        ("folder/judge:score", "names neither a module nor a Python file"),
        ("a..b:score", "names neither a module nor a Python file"),
        ("gone.py:score", "there is no file gone.py"),
        ("data.py:score", "there is no file data.py"),
    ],
)
def test_scorers_that_cannot_exist(spec, reason):
    assert f"evaluation.scorer = {spec!r}" in said(check_scorer("evaluation.scorer", spec))
    assert reason in said(check_scorer("evaluation.scorer", spec))


def test_the_command_that_makes_an_examples_data_is_named(folder):
    missing = said(check_path("data.prompts", "data/travel/prompts.jsonl"))
    assert "`python -m examples.travel.make_data --out data/travel` makes it" in missing


def test_the_model_whose_tokenizer_the_run_has_is_there_in_every_stage(folder):
    recipe = Recipe(name="a", model=ModelConfig(path="x/y"), ppo=PPOConfig(policy_init="/no/such"))
    assert "ppo.policy_init = '/no/such': there is no such file" in said(check_models(recipe, ["sft"]))
