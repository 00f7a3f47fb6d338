"""The corpus of keys with values, and what the comparison on it says. The training itself takes minutes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from examples.keys.corpus import write_corpus
from examples.keys.run import TEMPLATE, describe
from rlhf.config.schema import RetrievalConfig
from rlhf.evaluation.metric_table import MetricScores
from rlhf.retrieval.dataset import build_rows
from rlhf.retrieval.index import build_index
from rlhf.retrieval.passages import load_passages, load_questions
from rlhf.retrieval.template import PromptTemplate

CONFIG = RetrievalConfig(template=str(TEMPLATE), distractors=4, oracle_probability=1.0, evaluation_fraction=0.3)


def test_distractors_differ_in_the_last_word_only_and_evaluation_has_unseen_documents(tmp_path: Path) -> None:
    write_corpus(tmp_path, documents=200, seed=0)
    passages = load_passages(str(tmp_path / "passages.jsonl")).rows
    questions = load_questions(str(tmp_path / "questions.jsonl")).rows
    assert len({passage.id for passage in passages}) == len(questions) == 3200
    built = build_rows(build_index(passages, CONFIG), questions, CONFIG, seed=0)
    assert len(built.rows) == 3200 and built.rejected == ()
    first = {
        side: {row.question.text.rsplit(" ", 1)[0] for row in built.of_side(side)} for side in ("train", "evaluation")
    }
    assert first["evaluation"] and not first["train"] & first["evaluation"]
    shared = 0
    for row in built.rows:
        key = row.question.text.rstrip("?")
        shared += {passage.text.rsplit(" ", 4)[0] for passage in row.passages} == {key.rsplit(" ", 1)[0]}
        assert row.evidence.quotes == (f"{key} {row.question.answer}.",)
    assert shared > 0.9 * len(built.rows)  # of few documents, some have words that are as frequent as the last words
    assert len(built.rows[0].question.answer.split()) == 3
    shown = PromptTemplate.of(CONFIG).text("bak red?", built.rows[0].passages)
    assert shown.splitlines() == [*(passage.text for passage in built.rows[0].passages), "bak red?"]


def test_gains_are_paired_differences_with_intervals() -> None:
    plain, asked, raft = (
        np.repeat([0.0, 1.0], [90, 10]),
        np.repeat([1.0, 0.0], [20, 80]),
        np.repeat([1.0, 0.0], [80, 20]),
    )
    lines, least = describe(MetricScores(name="exact match", values=np.column_stack([plain, asked, raft])))
    assert lines[0].startswith("plain SFT, without passages: exact match 0.100 [")
    assert lines[1].startswith("RAFT above plain SFT, without passages: 0.700 [")
    assert lines[2].startswith("plain SFT, with passages: exact match 0.200 [")
    assert lines[3].startswith("RAFT above plain SFT, with passages: 0.600 [") and len(lines) == 5
    # 60 of 100 differences are 1 and 40 are 0: 0.6 - 1.96 · √(0.6 · 0.4/100) = 0.504.
    assert least == pytest.approx(0.504, abs=0.015)
