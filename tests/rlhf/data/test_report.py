from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

from rlhf.data.report import describe, listed, write_bad_rows
from rlhf.records import BadRow, Loaded, PromptRow, RowLocation


def bad(line: int, reason: str) -> BadRow:
    return BadRow(RowLocation("folder/f.jsonl", line), reason)


def test_bad_rows_are_counted_by_reason_with_the_first_places() -> None:
    good = tuple(PromptRow("a", RowLocation("f", i)) for i in range(1500))
    rows = (bad(3, "empty prompt"), *(bad(i, f"not text: prompt is {i}") for i in (5, 6, 7, 8)))
    rows += tuple(bad(i, "too long: 90 tokens") for i in (9, 10))
    assert describe(Loaded(good, rows), "prompts").split("\n") == [
        "prompts: 1,500 rows, 7 bad rows quarantined",
        "  4 × not text, for example: prompt is 5 (f.jsonl:5, f.jsonl:6, f.jsonl:7, ...)",
        "  2 × too long: 90 tokens (f.jsonl:9, f.jsonl:10)",
        "  1 × empty prompt (f.jsonl:3)",
    ]


def test_ties_are_no_bad_rows() -> None:
    ties = tuple(replace(bad(i, "tie"), is_fault=False) for i in (2, 4))
    assert describe(Loaded((1,), ties), "pairs").split("\n") == [
        "pairs: 1 rows, 2 ties quarantined",
        "  2 × tie (f.jsonl:2, f.jsonl:4)",
    ]
    assert describe(Loaded((1,), (*ties, bad(3, "no label"))), "pairs").split("\n")[0] == (
        "pairs: 1 rows, 1 bad row and 2 ties quarantined"
    )


def test_clean_data_takes_one_line() -> None:
    assert describe(Loaded((1, 2), ()), "pairs") == "pairs: 2 rows"


def test_bad_rows_are_written_with_their_places(tmp_path: Path) -> None:
    write_bad_rows(tmp_path / "bad.jsonl", [bad(3, "empty prompt"), bad(5, "not text: prompt is 'ä'")])
    lines = (tmp_path / "bad.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line) for line in lines] == [
        {"file": "folder/f.jsonl", "line": 3, "reason": "empty prompt"},
        {"file": "folder/f.jsonl", "line": 5, "reason": "not text: prompt is 'ä'"},
    ]


def test_names_of_columns_are_never_cut_and_the_others_are_counted() -> None:
    assert listed([f"column_{i}" for i in range(10)]).endswith("column_6, column_7 and 2 more")
    assert listed([]) == "none"
    text = describe(Loaded((1,), (bad(3, f"no column 'x': {'words ' * 60}"),)), "pairs")
    assert "words …" in text and len(text) < 330
