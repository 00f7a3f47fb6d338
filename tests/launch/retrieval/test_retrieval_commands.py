"""``rlhf retrieval build|index|ask`` on the travel world, up to the engine."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

import pytest

from examples.travel.passages import main as make_passages
from launch.cli import main
from rlhf.storage.jsonl import read_lines
from tests.end_to_end.small import ROOT, make_small_data, overrides

RECIPE = ROOT / "examples" / "travel" / "retrieval.yaml"
QUICKSTART = ROOT / "recipes" / "quickstart.yaml"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Passages, questions, dataset and index."""
    made = tmp_path_factory.mktemp("retrieval")
    make_passages(["--out", str(made)])
    rows = (made / "questions.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    (made / "questions.jsonl").write_text("".join(rows[::12]), encoding="utf-8")
    assert [run(command, *settings(made)) for command in ("build", "index")] == [0, 0]
    return made


def settings(folder: Path) -> list[str]:
    paths = ("passages", "questions")
    return [
        f"runs_dir={folder / 'runs'}",
        *(f"retrieval.{name}={folder / name}.jsonl" for name in paths),
        f"retrieval.dataset={folder / 'dataset'}",
        f"retrieval.index={folder / 'index'}",
        f"data.demonstrations={folder / 'dataset' / 'train.jsonl'}",
    ]


def run(command: str, *words: str) -> int:
    return main(["retrieval", command, str(RECIPE), *words])


def test_build_writes_rows_that_quote_the_world(folder: Path) -> None:
    rows = [row for side in ("train", "evaluation") for row in read_lines(folder / "dataset" / f"{side}.jsonl")]
    assert len(rows) == 300 and read_lines(folder / "dataset" / "rejected.jsonl") == []
    passages = {row["id"]: row["text"] for row in read_lines(folder / "passages.jsonl")}
    assert all(row["quotes"][0] in passages[row["oracle"]] and row["answer"] in row["quotes"][0] for row in rows)
    assert {len(row["contexts"]) for row in rows} == {4}


def test_build_and_index_report_what_they_wrote(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("build", *settings(folder)) == run("index", *settings(folder)) == 0
    shown = capsys.readouterr().out
    assert "questions: 300 rows" in shown and "53 passages by bm25" in shown
    sides = [len(read_lines(folder / "dataset" / f"{side}.jsonl")) for side in ("train", "evaluation")]
    assert f"rows: {sides[0]} train, {sides[1]} evaluation; with the oracle in the prompt: " in shown
    assert f", {sides[1]} evaluation → {folder / 'dataset'}" in shown and "warning" not in shown


@pytest.mark.parametrize(("fraction", "is_warned"), [(1e-9, True), (0, False)])
def test_build_warns_of_an_empty_evaluation(
    fraction: float, is_warned: bool, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    places = [f"retrieval.dataset={tmp_path / 'd'}", f"retrieval.evaluation_fraction={fraction}"]
    assert run("build", *settings(folder), *places) == 0
    shown = capsys.readouterr().out
    assert " train, 0 evaluation" in shown
    assert (
        "warning: no question is for evaluation, though retrieval.evaluation_fraction = 1e-09" in shown
    ) == is_warned


@pytest.fixture
def model(folder: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A small model with the tokenizer of the recipe, and an engine that cites its prompt."""
    from actors.session import Session
    from rlhf.types import Prompt

    def answer(session: Session, where: Path, prompts: Sequence[Prompt], logs: Path, shown: bool) -> list[str]:
        first = [prompt.text.splitlines()[0] for prompt in prompts]
        return [f" ##begin_quote##{line}##end_quote## <ANSWER>: {i}\n" for i, line in enumerate(first)]

    monkeypatch.setattr("actors.cluster.cluster", lambda *_: nullcontext())
    monkeypatch.setattr("actors.answering.answer", answer)
    return "retrieval.model=" + base_model(folder)


def base_model(folder: Path) -> str:
    """The recipe's randomly initialised model, made once, at the place that a run gives it."""
    from actors.session import Session
    from rlhf.config.load import load_recipe
    from rlhf.tracking.console import Console

    recipe = load_recipe(RECIPE, [*settings(folder), "name=made"])
    with open("/dev/null", "w", encoding="utf-8") as nowhere:
        return str(Session(recipe=recipe, console=Console(nowhere), device="cpu", gpus=0).base)


def test_ask_shows_answer_quotes_and_passages_of_each_question(folder: Path, model: str, tmp_path: Path) -> None:
    (tmp_path / "q.jsonl").write_text('{"question": "About the Amber Garden: Where is it?"}\n', encoding="utf-8")
    out = tmp_path / "answers.jsonl"
    place = json.loads((folder / "passages.jsonl").read_text(encoding="utf-8").splitlines()[0])
    words = ["--question", f"What is the price? {place['title']}", "--questions", str(tmp_path / "q.jsonl")]
    assert run("ask", *settings(folder), "name=made", model, *words, "--out", str(out)) == 0
    first, second = read_lines(out)
    assert first["context_ids"][0] == place["id"] and len(first["contexts"]) == 4
    assert first["quotes"] == [f"[1] {place['title']}: {place['text']}"] and first["answer"] == "0"
    assert second["question"] == "About the Amber Garden: Where is it?" and second["answer"] == "1"


def refused(folder: Path, capfd: pytest.CaptureFixture[str], *words: str) -> str:
    before = sorted(folder.rglob("*"))
    capfd.readouterr()
    assert main(list(words)) == 2
    assert sorted(folder.rglob("*")) == before
    message = capfd.readouterr().err
    assert "fix: " in message and "Traceback" not in message
    return message


@pytest.mark.parametrize("command", ["build", "index"])
def test_without_passages(command: str, folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    words = ["retrieval", command, str(RECIPE), *settings(folder)]
    assert "retrieval.passages is not set" in refused(folder, capfd, *words, "retrieval.passages=null")
    assert "there is no such file" in refused(folder, capfd, *words, f"retrieval.passages={folder / 'none.jsonl'}")


def test_more_distractors_than_there_are(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    words = ["retrieval", "build", str(RECIPE), *settings(folder), "retrieval.distractors=60"]
    message = refused(folder, capfd, *words)
    assert "no question has a training row" in message and "too few distractors" in message


@pytest.mark.parametrize("command", ["build", "index"])
def test_a_folder_of_something_else_is_not_replaced(
    command: str, folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "thesis.txt").write_text("mine", encoding="utf-8")
    places = [f"retrieval.dataset={tmp_path}", f"retrieval.index={tmp_path}"]
    message = refused(tmp_path, capfd, "retrieval", command, str(RECIPE), *settings(folder), *places)
    assert "would be deleted" in message
    below = [f"retrieval.{name}={tmp_path / 'thesis.txt' / 'x'}" for name in ("dataset", "index")]
    message = refused(tmp_path, capfd, "retrieval", command, str(RECIPE), *settings(folder), *below)
    assert "cannot be written" in message


def test_another_template_is_refused_in_training_and_serving(
    folder: Path, model: str, capfd: pytest.CaptureFixture[str]
) -> None:
    words = [str(RECIPE), *settings(folder), "name=refused", "retrieval.messages=true"]
    assert "the dataset" in refused(folder, capfd, "sft", *words)
    generate = ["generate", *words, "--model", "none", "--prompts", str(folder / "dataset" / "evaluation.jsonl")]
    assert "the dataset" in refused(folder, capfd, *generate)
    ask = ["retrieval", "ask", *words, "--question", "Q?"]
    assert "the dataset" in refused(folder, capfd, *ask)
    assert "the index" in refused(folder, capfd, *ask, f"retrieval.dataset={folder / 'none'}")


def test_ask_without_question_index_or_model(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    words = ["retrieval", "ask", str(RECIPE), *settings(folder), "name=refused"]
    assert "there is no question" in refused(folder, capfd, *words)
    words += ["--question", "Q?"]
    assert "there is no index" in refused(folder, capfd, *words, f"retrieval.index={folder / 'none'}")
    assert "has no finished model" in refused(folder, capfd, *words)


def test_prompts_that_do_not_fit_are_refused(folder: Path, model: str, capfd: pytest.CaptureFixture[str]) -> None:
    words = ["retrieval", "ask", str(RECIPE), *settings(folder), "name=refused", model]
    message = refused(folder, capfd, *words, "data.max_prompt_length=40", "--question", "Where is the Amber Inn?")
    assert "40" in message


def test_data_of_other_origin_has_no_template(tmp_path: Path) -> None:
    """The quickstart's files stand beside no manifest, whatever the recipe's template."""
    from rlhf.config.load import load_recipe
    from rlhf.retrieval.dataset import check_dataset_template

    make_small_data(tmp_path)
    recipe = load_recipe(QUICKSTART, [*overrides(tmp_path, "a"), "retrieval.messages=true"])
    assert recipe.data.demonstrations is not None
    check_dataset_template(recipe.data.demonstrations, recipe.retrieval)
