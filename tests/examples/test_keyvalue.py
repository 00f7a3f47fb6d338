"""The corpus of keys with numbers. ``measure`` itself takes minutes."""

from __future__ import annotations

from examples.keyvalue.corpus import make_corpus
from examples.keyvalue.measure import RETRIEVAL
from rlhf.retrieval.dataset import build_rows
from rlhf.retrieval.index import build_index
from rlhf.retrieval.template import PromptTemplate


def test_keys_are_distinct_and_share_words() -> None:
    passages, questions = make_corpus(documents=300, seed=0)
    names = [passage.document for passage in passages]
    assert len(set(names)) == 300 and len({name.split()[1] for name in names}) == 16
    for passage, question in zip(passages, questions, strict=True):
        assert question.text == f"{passage.id}?" and passage.text == f"{passage.id} {question.answer}."


def test_its_rows_show_near_distractors_and_quote_the_key() -> None:
    passages, questions = make_corpus(documents=300, seed=0)
    built = build_rows(build_index(passages, RETRIEVAL), questions, RETRIEVAL, seed=0)
    assert len(built.rows) == 300 and built.rejected == ()
    row = next(row for row in built.rows if row.has_oracle)
    assert row.evidence.quotes == (f"{row.question.text[:-1]} {row.question.answer}.",)
    words = set(row.question.text[:-1].split())
    assert sum(bool(words & set(passage.id.split())) for passage in row.passages) >= 4
    lines = PromptTemplate.of(RETRIEVAL).text(row.question.text, row.passages).splitlines()
    assert lines == [*(passage.text for passage in row.passages), row.question.text]
