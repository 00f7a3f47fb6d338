from __future__ import annotations

from rlhf.records import BadRow, RowLocation


def test_a_source_reads_as_file_and_line() -> None:
    assert str(RowLocation("a/b.jsonl", 7)) == "a/b.jsonl:7"


def test_the_category_of_a_bad_row_is_its_reason_without_the_detail() -> None:
    source = RowLocation("f", 1)
    assert BadRow(source, "not text: chosen is True").category == "not text"
    assert BadRow(source, "empty prompt").category == "empty prompt"
