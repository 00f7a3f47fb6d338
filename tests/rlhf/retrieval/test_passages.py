from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import pytest

from rlhf.errors import UserError
from rlhf.retrieval.passages import Passage, load_passages, load_questions, passages_digest


def write(path: Path, *rows: Mapping[str, object]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def test_columns_and_their_defaults(tmp_path: Path) -> None:
    rows = [
        {"text": " One. ", "id": 7, "title": "T", "document": "d", "url": "u"},
        {"text": "Two.", "title": "T"},
        {"text": "Three."},
    ]
    loaded = load_passages(write(tmp_path / "p.jsonl", *rows))
    first, second, third = loaded.rows
    assert first == Passage(id="7", text="One.", title="T", document="d")
    assert second.document == "T" and len(second.id) == 16
    assert third.document == third.id != second.id
    assert loaded.unused == ("url",)


def test_rows_that_are_no_passage_are_reported_with_their_line(tmp_path: Path) -> None:
    rows = [{"text": "One.", "id": "a"}, {"text": "  "}, {"title": "T"}, {"text": "Two.", "id": "a"}, {"text": 3}]
    loaded = load_passages(write(tmp_path / "p.jsonl", *rows))
    assert [(row.source.line, row.reason) for row in loaded.bad] == [
        (2, "no text"),
        (3, "no text"),
        (4, "repeated id: a"),
        (5, "no text"),
    ]


def test_questions_name_one_passage_or_several(tmp_path: Path) -> None:
    rows = [
        {"question": "Q?", "answer": "A", "oracle": "a", "quote": "A is."},
        {"question": "Q?", "answer": "A", "oracle": ["a", 4, ""]},
        {"question": "Q?", "answer": "A", "oracle": []},
        {"question": "Q?", "answer": " ", "oracle": "a"},
        {"answer": "A", "oracle": "a"},
    ]
    loaded = load_questions(write(tmp_path / "q.jsonl", *rows))
    assert [(row.oracles, row.quote) for row in loaded.rows] == [(("a",), "A is."), (("a", "4"), "")]
    assert [(row.source.line, row.reason) for row in loaded.bad] == [
        (3, "no oracle"),
        (4, "no answer"),
        (5, "no question"),
    ]


def test_a_file_without_a_usable_row_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="retrieval.passages = .* has no row that can be used") as refused:
        load_passages(write(tmp_path / "p.jsonl", {"body": "One."}))
    assert "no text" in str(refused.value) and "text, id, title, document" in str(refused.value)


def test_the_digest_changes_with_every_field_and_the_order() -> None:
    one = Passage(id="a", text="t", title="x", document="d")
    two = Passage(id="b", text="t", title="x", document="d")
    changed = [Passage(**{**vars(one), name: "y"}) for name in ("id", "text", "title", "document")]
    moved = Passage(id="a", text="", title="xt", document="d")
    digests = {
        passages_digest(some) for some in ([one], *([each] for each in changed), [moved], [one, two], [two, one])
    }
    assert len(digests) == 8


def test_half_of_a_surrogate_pair_is_a_bad_row_of_both_files(tmp_path: Path) -> None:
    """JSON can state it, and UTF-8, which hashes, files and tokenizers need, cannot."""
    passages = write(tmp_path / "p.jsonl", {"text": "One \ud800.", "id": "a"}, {"text": "Two.", "id": "b"})
    questions = write(
        tmp_path / "q.jsonl",
        {"question": "\ud800?", "answer": "Two", "oracle": "b"},
        {"question": "Which?", "answer": "Two", "oracle": ["b", "\udfff"]},
        {"question": "Which?", "answer": "Two", "oracle": "b"},
    )
    for loaded in (load_passages(passages), load_questions(questions)):
        assert len(loaded.rows) == 1
        assert {row.reason.partition(":")[0] for row in loaded.bad} == {"not Unicode"}
