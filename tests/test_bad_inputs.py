"""More than two hundred bad inputs: each is refused, reported or counted. None ends in a traceback or a hang, and none
leaves a file behind."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from transformers import LlamaConfig

from launch.cli import main
from rlhf import http_retries
from rlhf.config.load import load_recipe
from rlhf.config.schema import DataConfig, EndpointConfig
from rlhf.data.formats import load_demonstrations, load_preferences, load_prompts
from rlhf.data.read import read_rows
from rlhf.data.report import describe
from rlhf.errors import MachineryError, UserError
from rlhf.evaluation.scorers import load_scorer
from rlhf.models.scratch import train_tokenizer
from rlhf.records import BadRow
from rlhf.roles import endpoint as endpoint_module
from rlhf.roles.endpoint import Endpoint
from tests import bad_scores
from tests.bad_recipes import QUICKSTART, BadRecipe, bad_recipes
from tests.bad_rows import DATASET_FOLDERS, BadFile, bad_files, flipped_files, good_rows, lines_of
from tests.rlhf.service import Answer, serve

pytestmark = pytest.mark.timeout(300)  # a hang is a failure of this test and not of the whole run

LOADERS: dict[str, Callable] = {
    "demonstrations": load_demonstrations,
    "preferences": load_preferences,
    "prompts": load_prompts,
}
STAGES = {"demonstrations": "sft", "preferences": "reward", "prompts": "ppo"}
"""Kind of data → the command that reads it."""
SMALL = (
    "model.scratch={hidden_size: 32, layers: 1, heads: 1, intermediate_size: 32, vocab_size: 260, max_length: 128}",
    "evaluation.scorer=null",
    "reward.ceiling=null",
)


def fits_a_screen(message: str) -> bool:
    return len(message.splitlines()) < 40 and len(message) < 5000


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that commands run in. Nothing may be started from it."""

    def started(*_: object) -> None:
        raise AssertionError("a cluster was started or joined")

    monkeypatch.setattr("actors.cluster.cluster", started)
    monkeypatch.setattr("actors.cluster.join", started)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def tree(folder: Path) -> dict[str, tuple[int, int]]:
    """Every file and folder, with size and time of change."""
    return {str(path): (path.stat().st_size, path.stat().st_mtime_ns) for path in [folder, *folder.rglob("*")]}


def refusal(workplace: Path, capsys: pytest.CaptureFixture[str], command: str, *arguments: str) -> str:
    """Error output of a command that must be refused without any change to files."""
    before = tree(workplace)
    try:
        code = main([command, *arguments])
    except SystemExit as stopped:  # by the parser of the command line
        code = stopped.code
    message = capsys.readouterr().err
    assert code == 2, message
    assert "Traceback" not in message
    assert fits_a_screen(message), message
    assert {path: at for path, (_, at) in tree(workplace).items() if path not in before} == {}, "something was written"
    assert {path for path in before if not os.path.lexists(path)} == set()
    return message


@pytest.mark.parametrize("case", bad_recipes(), ids=lambda case: case.name)
def test_a_recipe_that_cannot_work_is_refused(
    case: BadRecipe, workplace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if case.file is not None:
        (workplace / case.path).write_bytes(case.file)
    message = refusal(workplace, capsys, case.command, case.path, *case.overrides)
    assert case.expected in message
    assert "\x1b" not in message
    assert any(word in message for word in ("fix: ", "expected ", "usage: ")), "there is no way out"


@pytest.mark.parametrize("setting", ["name=../elsewhere", "rollout.temperature=-1", "placement.device=cuda"])
def test_generate_refuses_a_recipe_as_the_stages_do(
    setting: str, workplace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (workplace / "run.yaml").write_text(QUICKSTART)
    message = refusal(workplace, capsys, "generate", "run.yaml", setting, "--model", "m", "--prompts", "p.jsonl")
    assert setting.partition("=")[0] in message


@pytest.mark.parametrize(
    ("out", "expected"), [("nowhere/answers.jsonl", "--out nowhere"), (".", "--out ."), ("answers.jsonl", "'m'")]
)
def test_generate_refuses_its_own_arguments(
    out: str, expected: str, workplace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (workplace / "run.yaml").write_text(QUICKSTART)
    (workplace / "m").mkdir()
    arguments = ("run.yaml", "--model", "m", "--prompts", "p.jsonl", "--out", out)
    assert expected in refusal(workplace, capsys, "generate", *arguments)


@pytest.mark.parametrize("weights", ["", "pytorch_model.bin"])
def test_generate_refuses_a_model_without_weights_before_anything_starts(
    weights: str, workplace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (workplace / "run.yaml").write_text(QUICKSTART)
    (workplace / "p.jsonl").write_bytes(b"\n".join(lines_of(good_rows("prompts"))))
    train_tokenizer([], 258).save_pretrained(workplace / "m")
    LlamaConfig(vocab_size=258, max_position_embeddings=512).save_pretrained(workplace / "m")
    if weights:
        (workplace / "m" / weights).write_bytes(b"a pickle")
    message = refusal(workplace, capsys, "generate", "run.yaml", "--model", "m", "--prompts", "p.jsonl")
    assert "'m' has no complete weights" in message and (weights or "no weights") in message


@pytest.mark.parametrize(
    ("options", "expected"),
    [(("--n", "0"), "--n 0 asks for no answer"), (("--n", "2", "--best-of", "2"), "--n with --best-of")],
)
def test_generate_refuses_numbers_of_answers_that_mean_nothing(
    options: tuple[str, ...], expected: str, workplace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (workplace / "run.yaml").write_text(QUICKSTART)
    arguments = ("run.yaml", "--model", "m", "--prompts", "p.jsonl", *options)
    assert expected in refusal(workplace, capsys, "generate", *arguments)


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("config.json", b"[]"),
        ("config.json", b"{"),
        ("config.json", b'{"model_type": "llama", "max_position_embeddings": "many"}'),
        ("config.json", b'{"model_type": "llama", "num_attention_heads": 0}'),
        ("config.json", b"\xff\xfe"),
    ],
)
def test_a_broken_model_folder_is_refused(
    file: str, content: bytes, workplace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = given(workplace, "demonstrations", "model.scratch=null", "model.path=broken")
    (workplace / "broken").mkdir()
    (workplace / "broken" / file).write_bytes(content)
    assert "broken" in refusal(workplace, capsys, "sft", "run.yaml", *settings)


@pytest.mark.parametrize("template", [b"{{ 1 / 0 }}", b"{% for %}", b"{{ undefined.of }}", b"\xff"])
def test_a_chat_template_that_fails_is_refused(
    template: bytes, workplace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    settings = given(workplace, "demonstrations", "model.chat_template=template.jinja")
    (workplace / "template.jinja").write_bytes(template)
    (workplace / "demonstrations.jsonl").write_bytes(b"\n".join(lines_of([{"messages": turns}] * 3)))
    assert "template" in refusal(workplace, capsys, "sft", "run.yaml", *settings)


def test_more_updates_than_any_run_makes_are_refused(workplace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = given(workplace, "demonstrations", "sft.epochs=100000", "sft.batch_size=2")
    assert "updates" in refusal(workplace, capsys, "sft", "run.yaml", *settings)


def test_a_warm_up_longer_than_the_data_is_refused_before_anything_starts(
    workplace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = given(workplace, "demonstrations", "sft.batch_size=2", "sft.optimizer.warmup_steps=500")
    assert "sft.optimizer.warmup_steps = 500" in refusal(workplace, capsys, "sft", "run.yaml", *settings)


def test_ppo_before_the_stages_it_starts_from_is_refused(workplace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = given(workplace, "prompts")
    said = refusal(workplace, capsys, "ppo", "run.yaml", *settings)
    assert "run `rlhf sft`" in said and "run `rlhf reward`" in said, "all models that are missing"
    assert ": 2 problems" in said, "the critic starts from the same models"


def given(workplace: Path, stage: str, *settings: str) -> list[str]:
    """A recipe and good data in the folder, and the overrides that name them."""
    (workplace / "run.yaml").write_text(QUICKSTART)
    for kind in dict.fromkeys(("demonstrations", stage)):
        rows = good_rows(kind, 40)
        (workplace / f"{kind}.jsonl").write_bytes(b"\n".join(lines_of(rows)))
    return [*SMALL, f"data.{stage}={stage}.jsonl", "data.demonstrations=demonstrations.jsonl", *settings]


def config_of(case: BadFile, folder: Path, **options: object) -> DataConfig:
    """The ``data`` section of a case whose file is in the folder."""
    (folder / case.file).write_bytes(case.data)
    (folder / "run.yaml").write_text("name: a\n")
    settings = (f"data.{case.stage}={folder / case.file}", *case.settings)
    return replace(load_recipe(folder / "run.yaml", settings).data, **options)


@pytest.mark.parametrize("case", bad_files(), ids=lambda case: case.name)
def test_bad_rows_are_counted_and_listed_or_refused(case: BadFile, tmp_path: Path) -> None:
    load, config = LOADERS[case.stage], config_of(case, tmp_path)
    if case.refused is not None:
        for bad_rows in ("skip", "error"):
            with pytest.raises(UserError) as caught:
                load(replace(config, bad_rows=bad_rows))
            assert fits_a_screen(str(caught.value))
        with pytest.raises(UserError) as caught:
            load(config)
        assert case.refused in str(caught.value)
        return
    loaded = load(config)
    assert len(loaded.rows) == case.good
    assert {row.source.line: row.category for row in loaded.bad} == case.bad
    for line, category in case.bad.items():
        assert f"{case.file}:{line}" in describe(loaded, "rows") and category in describe(loaded, "rows")
        if line == min(case.bad):
            with pytest.raises(UserError, match=f"{case.file}:{line}: {category}"):
                load(replace(config, bad_rows="error"))


@pytest.mark.parametrize("case", bad_files(), ids=lambda case: case.name)
def test_bad_rows_stop_the_command_before_anything_starts(
    case: BadFile, workplace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = given(workplace, "demonstrations", "data.bad_rows=error", f"data.{case.stage}={case.file}")
    (workplace / case.file).write_bytes(case.data)
    message = refusal(workplace, capsys, STAGES[case.stage], "run.yaml", *settings, *case.settings)
    assert case.file in message or case.settings
    if case.bad:
        assert f"{case.file}:{min(case.bad)}: {case.bad[min(case.bad)]}" in message


@pytest.mark.parametrize("case", flipped_files(), ids=lambda case: case.name)
def test_of_a_damaged_file_every_row_is_a_row_or_a_bad_row_or_the_file_is_refused(
    case: BadFile, tmp_path: Path
) -> None:
    config = config_of(case, tmp_path)
    try:
        loaded, refused = load_preferences(config), ""
    except UserError as error:
        loaded, refused = None, str(error)
    if loaded is None:
        assert case.file in refused and fits_a_screen(refused)
        return
    read = list(read_rows(str(tmp_path / case.file)))
    assert len(loaded.rows) + len(loaded.bad) == len(read) > 0
    assert sum(isinstance(row, BadRow) for row in read) <= len(loaded.bad)


@pytest.mark.parametrize("name", DATASET_FOLDERS)
def test_a_broken_datasets_folder_is_refused(name: str, tmp_path: Path) -> None:
    for file, content in DATASET_FOLDERS[name].items():
        (tmp_path / file).write_bytes(content)
    with pytest.raises(UserError) as caught:
        load_demonstrations(DataConfig(path=str(tmp_path)))
    assert str(tmp_path) in str(caught.value) and fits_a_screen(str(caught.value))


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_retries, "FIRST_WAIT", 0.01)
    monkeypatch.setattr(http_retries, "LONGEST_WAIT", 0.02)
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY", endpoint_module.TOKEN):
        monkeypatch.delenv(name, raising=False)


def ask(url: str, on_failure: str) -> list[float]:
    """Scores of two responses by a service that is given little time."""
    limits = {"timeout_seconds": bad_scores.SECONDS, "retries": 1}
    if on_failure == "patient":  # what is not about time must not fail for want of it
        on_failure, limits["timeout_seconds"] = "fail", 30.0
    config = EndpointConfig(url=url, on_failure=on_failure, **limits)
    return Endpoint(config, 45.0)(["p0", "p1"], ["r0", "r1"], [{}, {}]).tolist()


@pytest.mark.parametrize("name", bad_scores.ANSWERS)
def test_a_service_that_breaks_the_contract_stops_the_run(name: str) -> None:
    answer, expected = bad_scores.ANSWERS[name]
    with serve(lambda number, asked: answer) as service, pytest.raises(UserError) as caught:
        ask(service.url, "patient")
    assert expected in str(caught.value) and service.url in str(caught.value)
    assert caught.value.fix and fits_a_screen(str(caught.value))


@pytest.mark.parametrize("name", bad_scores.FAILURES)
def test_a_service_that_could_not_be_asked_is_the_machinerys_or_its_samples_are_dropped(name: str) -> None:
    answer: Answer = bad_scores.FAILURES[name]
    with serve(lambda number, asked: answer) as service:
        with pytest.raises(MachineryError, match="after 2 attempts") as caught:
            ask(service.url, "fail")
        assert np.isnan(ask(service.url, "drop")).all()
    assert service.url in str(caught.value) and fits_a_screen(str(caught.value))


@pytest.mark.parametrize("name", bad_scores.RAW)
def test_what_is_no_http_is_a_service_that_could_not_be_asked(name: str) -> None:
    with bad_scores.speak(bad_scores.RAW[name]) as url:
        with pytest.raises(MachineryError, match="after 2 attempts") as caught:
            ask(url, "fail")
        assert np.isnan(ask(url, "drop")).all()
    assert fits_a_screen(str(caught.value))


@pytest.mark.parametrize("name", bad_scores.RIGHT)
def test_an_odd_answer_with_the_right_content_is_taken(name: str) -> None:
    with serve(lambda number, asked: bad_scores.RIGHT[name]) as service:
        assert ask(service.url, "patient") == [1.0, 2.5]


def test_a_proxy_that_is_none_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "what://is:this")
    with pytest.raises(UserError, match="cannot be used") as caught:
        Endpoint(EndpointConfig(url="http://a/score"), 1.0)
    assert "HTTP_PROXY" in caught.value.fix


def _judge(folder: Path, text: str) -> str:
    (folder / "judge.py").write_text(text)
    return f"{folder}/judge.py:score"


@pytest.mark.parametrize("name", bad_scores.FUNCTIONS)
def test_a_function_that_breaks_the_contract_is_named(name: str, tmp_path: Path) -> None:
    body, expected = bad_scores.FUNCTIONS[name]
    scorer = load_scorer(_judge(tmp_path, f"def score(prompts, responses):\n    {body}\n"))
    with pytest.raises(UserError) as caught:
        scorer(["p0", "p1"], ["r0", "r1"])
    assert expected in str(caught.value) and "judge.py:score" in caught.value.what
    assert caught.value.fix and fits_a_screen(str(caught.value))


@pytest.mark.parametrize("name", bad_scores.MODULES)
def test_a_scorers_file_that_cannot_be_used_is_named(name: str, tmp_path: Path) -> None:
    text, expected = bad_scores.MODULES[name]
    with pytest.raises(UserError) as caught:
        load_scorer(_judge(tmp_path, text))
    assert expected in str(caught.value) and caught.value.fix


def test_an_async_function_that_is_cancelled_is_named(tmp_path: Path) -> None:
    text = "import asyncio\nasync def score(prompts, responses):\n    raise asyncio.CancelledError\n"
    with pytest.raises(UserError, match="failed on sample 0"):
        load_scorer(_judge(tmp_path, text))(["p0"], ["r0"])
