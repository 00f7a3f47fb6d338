from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from rlhf.retrieval.passages import Passage
from rlhf.retrieval.split import EVALUATION, TRAIN, split_documents
from tests.rlhf.retrieval.corpora import key_values, question


def passage(name: str, document: str, text: str) -> Passage:
    return Passage(id=name, document=document, text=text)


def sides(passages: list[Passage], *questions: tuple[str, ...]) -> list[str]:
    return split_documents(passages, [question("Q?", "A", *oracles) for oracles in questions], 0.5, seed=1)


def test_documents_with_a_passage_of_the_same_words_stay_together() -> None:
    copies = [passage(f"p{i}", f"d{i}", text) for i, text in enumerate(["A copy.", "a COPY"] * 20)]
    assert len(set(sides(copies))) == 1
    assert set(sides([passage(f"p{i}", f"d{i}", f"text {i}") for i in range(40)])) == {TRAIN, EVALUATION}


def test_documents_of_one_question_stay_together() -> None:
    apart = [passage(f"p{i}", f"d{i}", f"text {i}") for i in range(40)]
    chain = [(f"p{i}", f"p{i + 1}") for i in range(39)]
    assert len(set(sides(apart, *chain))) == 1
    assert set(sides(apart, ("p0", "unknown"))) == {TRAIN, EVALUATION}


def test_the_fraction_is_met_on_average_and_zero_holds_nothing_out() -> None:
    passages, questions = key_values(250)
    assert set(split_documents(passages, questions, 0.0, seed=0)) == {TRAIN}
    counts = [split_documents(passages, questions, 0.1, seed=seed).count(EVALUATION) for seed in range(8)]
    assert 0.08 < sum(counts) / len(counts) / 500 < 0.12


@given(
    st.lists(st.tuples(st.integers(0, 8), st.integers(0, 12)), min_size=1, max_size=25),
    st.lists(st.lists(st.integers(0, 30), min_size=1, max_size=3), max_size=6),
    st.integers(0, 50),
)
def test_nothing_is_on_both_sides(rows: list[tuple[int, int]], asked: list[list[int]], seed: int) -> None:
    """Documents and texts as drawn; questions name passages by number, some of which do not exist."""
    passages = [passage(f"p{i}", f"d{document}", f"text {text}") for i, (document, text) in enumerate(rows)]
    questions = [question("Q?", "A", *(f"p{i}" for i in oracles)) for oracles in asked]
    found = split_documents(passages, questions, 0.4, seed)
    by_name = {each.id: side for each, side in zip(passages, found, strict=True)}
    for part in ("document", "text"):
        pairs = {(getattr(each, part), side) for each, side in zip(passages, found, strict=True)}
        assert len(pairs) == len({value for value, _ in pairs})
    assert all(len({by_name[name] for name in each.oracles if name in by_name}) <= 1 for each in questions)
