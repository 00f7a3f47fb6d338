"""Invariants of 2,000 questions on 1,000 documents, and rejected questions."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from rlhf.config.schema import DataConfig, RetrievalConfig
from rlhf.data.formats import load_demonstrations, load_prompts
from rlhf.errors import UserError
from rlhf.retrieval.answers import extract_answer, extract_quotes
from rlhf.retrieval.dataset import Built, build_rows, check_dataset_template, save_dataset
from rlhf.retrieval.mining import Miner
from rlhf.retrieval.passages import Passage
from rlhf.retrieval.template import PromptTemplate
from tests.rlhf.retrieval.corpora import key_values, lexical, question, texts

CONFIG = RetrievalConfig(distractors=4, oracle_probability=0.8, evaluation_fraction=0.1)
BUILT_IN = PromptTemplate.of(CONFIG)
PASSAGES, QUESTIONS = key_values(1000)


@pytest.fixture(scope="module")
def built() -> Built:
    return build_rows(lexical(PASSAGES), QUESTIONS, CONFIG, seed=0)


def test_every_question_has_one_row_of_distinct_passages(built: Built) -> None:
    assert built.rejected == () and [row.question for row in built.rows] == QUESTIONS
    assert all(len({passage.id for passage in row.passages}) == 5 for row in built.rows)


def test_the_oracle_is_there_with_probability_p_and_always_in_evaluation(built: Built) -> None:
    """Four standard deviations of 1,800 draws are 0.038."""
    train, evaluation = built.of_side("train"), built.of_side("evaluation")
    assert len(train) + len(evaluation) == 2000 and 120 < len(evaluation) < 280
    assert abs(sum(row.has_oracle for row in train) / len(train) - 0.8) < 0.038
    assert all(row.has_oracle for row in evaluation)


def test_the_oracle_has_no_preferred_position(built: Built) -> None:
    """Four standard deviations of a fifth of 1,600 draws are 64."""
    having = [row for row in built.rows if row.has_oracle]
    positions = Counter(row.passages.index(row.evidence.passage) for row in having)
    assert all(abs(positions[i] - len(having) / 5) < 64 for i in range(5))


def test_answers_quote_the_oracle_verbatim(built: Built) -> None:
    for row in built.rows:
        assert row.evidence.passage.id == row.question.oracles[0]
        assert all(quote in row.evidence.passage.text for quote in row.evidence.quotes)
        assert row.question.answer in row.evidence.quotes[0]


def test_no_distractor_answers_the_question(built: Built) -> None:
    for row in built.rows:
        others = [passage for passage in row.passages if passage != row.evidence.passage]
        assert not any(row.question.answer in passage.text for passage in others)


def test_no_document_is_shared_by_the_sides(built: Built) -> None:
    documents = {
        side: {passage.document for row in built.of_side(side) for passage in row.passages}
        for side in ("train", "evaluation")
    }
    assert len(documents["evaluation"]) > 50 and documents["train"] & documents["evaluation"] == set()


def test_distractors_are_the_best_of_their_side() -> None:
    """Of the passages that share words with the question, b shares most; e does not."""
    passages = texts("The red hat is in room 1.", "The red hat was sold.", "A red shoe.", "The hat.", "Blue lamps.")
    asked = [question("Where is the red hat?", "room 1", "a")]
    row = build_rows(lexical(passages), asked, replace(CONFIG, distractors=3, evaluation_fraction=0.0), 0).rows[0]
    assert {passage.id for passage in row.passages} - {"a"} >= {"b", "c", "d"}


def test_rows_are_a_function_of_seed_and_row(built: Built) -> None:
    index = lexical(PASSAGES)
    assert build_rows(index, QUESTIONS[::-1], CONFIG, seed=0).rows[::-1] == built.rows
    assert build_rows(index, QUESTIONS[500:600], CONFIG, seed=0).rows == built.rows[500:600]
    other = build_rows(index, QUESTIONS[:200], CONFIG, seed=1).rows
    assert sum(mine.passages == theirs.passages for mine, theirs in zip(built.rows, other, strict=False)) < 20


@pytest.mark.parametrize("probability", [0.0, 1.0])
def test_certain_and_impossible_oracles(probability: float) -> None:
    config = replace(CONFIG, oracle_probability=probability, evaluation_fraction=0.0)
    rows = build_rows(lexical(PASSAGES[:60]), QUESTIONS[:60], config, seed=0).rows
    assert {row.has_oracle for row in rows} == {probability == 1.0}
    assert {len(row.passages) for row in rows} == {5}


def test_other_oracles_of_a_question_are_no_distractors() -> None:
    passages = texts("The red hat costs 60 crowns.", "A hat, red.", "Red hats cost more.", "Blue.")
    asked = [question("What does the red hat cost?", "60 crowns", "a", "b")]
    config = replace(CONFIG, distractors=2, oracle_probability=1.0, evaluation_fraction=0.0)
    row = build_rows(lexical(passages), asked, config, 0).rows[0]
    assert {passage.id for passage in row.passages} == {"a", "c", "d"}


@pytest.mark.parametrize(
    ("quote", "passage", "answers"),
    [
        ("価格は65円", "この宿の価格は65円です。", True),
        ("価格は65円", "この宿の価格は６５円です。", True),  # full width
        ("価格は65円", "この宿の価格は165円です。", False),
        ("가격은 65원", "이 숙소의 가격은  65원입니다.", True),
        ("room 1", "It is in ROOM\n1.", True),
        ("room 1", "It is in room 12 of the ballroom 1.", False),
    ],
)
def test_a_passage_with_the_quote_is_no_distractor(quote: str, passage: str, answers: bool) -> None:
    oracle = Passage(id="a", text=f"{quote}.", document="a")
    for other in (
        Passage(id="b", text=passage, document="b"),
        Passage(id="b", text="-", title=passage, document="b"),
    ):
        miner = Miner(lexical([oracle, other]), ["train", "train"])
        found = miner.distractors(question("Which?", quote, "a"), [quote], "train", 2)
        assert [each.id for each in found] == ([] if answers else ["b"])


def test_rejected_questions_have_reasons() -> None:
    tagged = Passage(id="t", text="It is <ANSWER>: 9 now.", document="t")
    passages = [*texts("The red hat is in room 1.", "The blue hat is in room 2.", "Nothing."), tagged]
    asked = [
        question("Where is the red hat?", "room 1", "a", line=1),
        question("Where is the red hat?", "room 1", "a", line=2),
        question("Where?", "room 1", "z", line=3),
        question("Where is it?", "the attic", "a", line=4),
        question("Where is it?", "room 2", "b", quote="in Room 2", line=5),
        question("Where ##begin_quote## is it?", "room 2", "b", line=6),
        question("What is it?", "9 now", "t", line=7),
    ]
    config = replace(CONFIG, distractors=1, evaluation_fraction=0.0)
    found = build_rows(lexical(passages), asked, config, 0)
    assert [row.question.source.line for row in found.rows] == [1]
    assert [(row.source.line, row.reason) for row in found.rejected] == [
        (2, "repeated question"),
        (3, "unknown passage: z"),
        (4, "no sentence of the oracle supports the answer"),
        (5, "the quote is not in the oracle"),
        (6, "a tag of answers in question or answer"),
        (7, "a tag of answers in the passage: t"),
    ]
    few = build_rows(lexical(passages), asked[:1], replace(config, distractors=4), 0).rejected
    assert [row.category for row in few] == ["too few distractors"]


def test_the_files_are_what_sft_and_ppo_read(built: Built, tmp_path: Path) -> None:
    folder = tmp_path / "dataset"
    facts = save_dataset(built, lexical(PASSAGES), BUILT_IN, 0, folder)
    data = DataConfig(path=str(folder / "train.jsonl"))
    demonstrations, prompts = load_demonstrations(data), load_prompts(data)
    assert (
        demonstrations.bad == () and len(demonstrations.rows) == len(built.of_side("train")) == facts["rows"]["train"]
    )
    for row, shown, prompt in zip(built.of_side("train"), demonstrations.rows, prompts.rows, strict=True):
        assert shown.prompt == prompt.prompt == BUILT_IN.text(row.question.text, row.passages)
        assert extract_quotes(shown.completion) == row.evidence.quotes
        assert extract_answer(shown.completion) == row.question.answer == prompt.columns["answer"]
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["template"] == BUILT_IN.digest and manifest["rejected"] == {}
    assert {entry["name"] for entry in manifest["files"]} == {"train.jsonl", "evaluation.jsonl", "rejected.jsonl"}


def test_messages_are_read_as_one_exchange(built: Built, tmp_path: Path) -> None:
    few = Built(rows=built.rows[:5], rejected=())
    template = PromptTemplate.of(replace(CONFIG, messages=True))
    save_dataset(few, lexical(PASSAGES), template, 0, tmp_path / "dataset")
    (row, *_) = load_demonstrations(DataConfig(path=str(tmp_path / "dataset" / "train.jsonl"))).rows
    assert [turn.role for turn in row.prompt] == ["user"] and row.completion.content.startswith("##begin_quote##")


def test_training_on_a_dataset_of_another_template_is_refused(built: Built, tmp_path: Path) -> None:
    save_dataset(Built(rows=built.rows[:5], rejected=()), lexical(PASSAGES), BUILT_IN, 0, tmp_path / "dataset")
    for path in (tmp_path / "dataset", tmp_path / "dataset" / "train.jsonl"):
        check_dataset_template(str(path), CONFIG)
        with pytest.raises(UserError, match="the dataset .* was made with the prompt template"):
            check_dataset_template(str(path), replace(CONFIG, messages=True))
    check_dataset_template(str(tmp_path / "other.jsonl"), replace(CONFIG, messages=True))
    for name in ("owner/name", "x" * 5000, "\0", "~nobody-of-this-name/x"):
        check_dataset_template(name, CONFIG)
    for text in ("[1]", "no JSON", '{"kind": "of other software"}'):
        (tmp_path / "manifest.json").write_text(text)
        check_dataset_template(str(tmp_path / "rows.jsonl"), CONFIG)
