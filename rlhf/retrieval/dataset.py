"""Builds RAFT's training data (Zhang et al. 2024, section 3): questions, passages with distractors, quoted answers.

With probability p a training prompt holds the oracle, the passage that answers the question, among k distractors;
otherwise k + 1 distractors, so that the number of passages does not reveal it. The completion quotes the oracle in both
cases: without it the model has to know the document, as in the paper.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rlhf.config.schema import RetrievalConfig
from rlhf.data.report import write_bad_rows
from rlhf.records import BadRow
from rlhf.retrieval.answers import compose, has_tag
from rlhf.retrieval.folder import read_manifest, written_with_manifest
from rlhf.retrieval.index import Index
from rlhf.retrieval.mining import Miner
from rlhf.retrieval.passages import Passage, Question, passages_digest
from rlhf.retrieval.quotes import Evidence, find_evidence, given_evidence
from rlhf.retrieval.split import SIDES, TRAIN, split_documents
from rlhf.retrieval.template import PromptTemplate, require_template
from rlhf.storage.jsonl import to_line

KIND = "dataset"


@dataclass(frozen=True, kw_only=True)
class RetrievalRow:
    """A question with its passages, in the order of the prompt."""

    question: Question
    evidence: Evidence
    passages: tuple[Passage, ...]
    side: str
    """``train`` or ``evaluation``."""

    @property
    def has_oracle(self) -> bool:
        """Whether the quoted passage is in the prompt."""
        return self.evidence.passage in self.passages


@dataclass(frozen=True, kw_only=True)
class Built:
    """Rows in the questions' order, and the questions that were rejected, with reasons."""

    rows: tuple[RetrievalRow, ...]
    rejected: tuple[BadRow, ...]

    def of_side(self, side: str) -> list[RetrievalRow]:
        """The rows of one side."""
        return [row for row in self.rows if row.side == side]


class Builder:
    """Turns questions into rows; each row is a function of the seed, the question and the passages."""

    def __init__(self, index: Index, questions: Sequence[Question], config: RetrievalConfig, seed: int) -> None:
        self._config, self._seed = config, seed
        self._by_id = {passage.id: passage for passage in index.passages}
        sides = split_documents(index.passages, questions, config.evaluation_fraction, seed)
        self._side_of = {passage.id: side for passage, side in zip(index.passages, sides, strict=True)}
        self._miner = Miner(index, sides)

    def row(self, question: Question) -> RetrievalRow | str:
        """The row of a question, or the reason for its rejection: a category, or ``category: detail``."""
        unknown = [name for name in question.oracles if name not in self._by_id]
        if unknown:
            return f"unknown passage: {unknown[0]}"
        if has_tag(f"{question.text}\n{question.answer}"):
            return "a tag of answers in question or answer"
        evidence = _evidence(question, [self._by_id[name] for name in question.oracles])
        if isinstance(evidence, str):
            return evidence
        if has_tag(f"{evidence.passage.title}\n{evidence.passage.text}"):
            return f"a tag of answers in the passage: {evidence.passage.id}"
        return self._row(question, evidence)

    def _row(self, question: Question, evidence: Evidence) -> RetrievalRow | str:
        oracle, count = evidence.passage, self._config.distractors
        side = self._side_of[oracle.id]
        rng = random.Random(f"retrieval-{self._seed}-{question.text}-{oracle.id}")
        is_given = rng.random() < self._config.oracle_probability or side != TRAIN
        wanted = count if is_given else count + 1
        mined = self._miner.distractors(question, evidence.quotes, side, wanted)
        if len(mined) < wanted:
            return f"too few distractors: {len(mined)} of {wanted} on the side {side}"
        passages = [oracle, *mined] if is_given else mined
        rng.shuffle(passages)
        return RetrievalRow(question=question, evidence=evidence, passages=tuple(passages), side=side)


def _evidence(question: Question, oracles: Sequence[Passage]) -> Evidence | str:
    """Verbatim quotes of an oracle, or the reason why there are none."""
    if question.quote:
        return given_evidence(question.quote, oracles) or "the quote is not in the oracle"
    return find_evidence(question.answer, oracles) or "no sentence of the oracle supports the answer"


def build_rows(index: Index, questions: Sequence[Question], config: RetrievalConfig, seed: int) -> Built:
    """Build the rows of all questions; a repeated question about the same oracles is rejected."""
    builder = Builder(index, questions, config, seed)
    rows, rejected, seen = list[RetrievalRow](), list[BadRow](), set[tuple[str, ...]]()
    for question in questions:
        key = (question.text, *sorted(question.oracles))
        found = "repeated question" if key in seen else builder.row(question)
        seen.add(key)
        if isinstance(found, str):
            rejected.append(BadRow(question.source, found))
        else:
            rows.append(found)
    return Built(rows=tuple(rows), rejected=tuple(rejected))


def as_columns(row: RetrievalRow, template: PromptTemplate) -> Mapping[str, object]:
    """A row of the files: prompt and completion for training; for evaluation and rewards question, answer, quotes,
    passages, their ids, and the oracle's."""
    completion = compose(row.evidence.quotes, row.question.answer)
    return {
        "prompt": template.prompt(row.question.text, row.passages),
        "completion": [{"role": "assistant", "content": completion.strip()}] if template.is_message else completion,
        "question": row.question.text,
        "answer": row.question.answer,
        "quotes": row.evidence.quotes,
        "contexts": [passage.text for passage in row.passages],
        "context_ids": [passage.id for passage in row.passages],
        "oracle": row.evidence.passage.id,
    }


def save_dataset(built: Built, index: Index, template: PromptTemplate, seed: int, folder: Path) -> Mapping[str, object]:
    """Write ``train.jsonl``, ``evaluation.jsonl``, ``rejected.jsonl`` and the manifest; returns the manifest's facts.

    Raises:
        UserError: the folder holds something else.
    """
    facts = {
        "template": template.digest,
        "seed": seed,
        "passages_digest": passages_digest(index.passages),
        "rows": {side: len(built.of_side(side)) for side in SIDES},
        "with_oracle": {side: sum(row.has_oracle for row in built.of_side(side)) for side in SIDES},
        "rejected": _count(built.rejected),
    }
    with written_with_manifest(folder, KIND, facts) as place:
        for side in SIDES:
            (place / f"{side}.jsonl").write_text("".join(_lines(built.of_side(side), template)), encoding="utf-8")
        write_bad_rows(place / "rejected.jsonl", built.rejected)
    return facts


def _lines(rows: Sequence[RetrievalRow], template: PromptTemplate) -> Iterator[str]:
    return (to_line(as_columns(row, template)) for row in rows)


def _count(rejected: Sequence[BadRow]) -> dict[str, int]:
    """Number of rejected questions by category, in alphabetical order."""
    categories = [row.category for row in rejected]
    return {category: categories.count(category) for category in sorted(set(categories))}


def check_dataset_template(path: str, config: RetrievalConfig) -> None:
    """Check that a data file of ``rlhf retrieval build`` has the recipe's prompt template; other files have none.

    Args:
        path: the file, or its folder.

    Raises:
        UserError: the dataset was made with another template, or the recipe's cannot be used.
    """
    for folder in (Path(path), Path(path).parent):
        facts = read_manifest(folder)
        if facts.get("kind") == KIND:
            require_template(str(facts.get("template")), PromptTemplate.of(config), f"the dataset {str(folder)!r}")
