"""A growing file is read once, complete lines only, and again after it was truncated."""

from __future__ import annotations

from pathlib import Path

import pytest

from launch.watch import follow
from launch.watch.follow import Recent, Rows


def steps(rows: Rows) -> list[int]:
    return [row["step"] for row in rows.read().items]


def add(path: Path, text: str) -> None:
    with path.open("a", encoding="utf-8") as file:
        file.write(text)


def test_only_whole_lines_count(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    rows = Rows(path, keep=10)
    assert steps(rows) == []
    add(path, '{"step": 0}\n{"ste')
    assert steps(rows) == [0]
    add(path, 'p": 1}')
    assert steps(rows) == [0]
    add(path, "\n")
    assert steps(rows) == [0, 1]


def test_what_was_read_is_not_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, lines = tmp_path / "metrics.jsonl", []
    rows = Rows(path, keep=10)
    parsed = follow.parsed
    monkeypatch.setattr(follow, "parsed", lambda line: (lines.append(line), parsed(line))[1])
    for step in range(5):
        add(path, f'{{"step": {step}}}\n')
        rows.read()
    assert len(lines) == 5


def test_a_bad_line_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 0}\nnot json\n[1]\n\xff\xfe\n{"step": 1}\n')
    assert steps(Rows(path, keep=10)) == [0, 1]


def test_a_truncated_file_is_read_from_the_start(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 0}\n{"step": 1}\n{"step": 2}\n')
    rows = Rows(path, keep=10)
    assert steps(rows) == [0, 1, 2]
    path.write_text('{"step": 0}\n')
    assert steps(rows) == [0]
    add(path, '{"step": 1, "again": true}\n')
    assert rows.read().items[-1] == {"step": 1, "again": True}


def test_a_truncated_file_that_grew_again_is_read_from_the_start(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 0}\n{"step": 1}\n')
    rows = Rows(path, keep=10)
    rows.read()
    with path.open("r+") as file:  # the same file, as a run cuts it
        file.truncate(12)
    add(path, '{"step": 1, "again": true}\n{"step": 2}\n')
    assert [row.get("again") for row in rows.read().items] == [None, True, None]


def test_of_a_long_file_the_end_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(follow, "TAIL_BYTES", 40)
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(f'{{"step": {step}}}\n' for step in range(100, 200)))
    rows = Rows(path, keep=1000)
    assert steps(rows) == [198, 199]  # a line has 14 bytes: two whole ones
    add(path, '{"step": 200}\n')
    assert steps(rows) == [198, 199, 200]


def test_recent_tells_what_has_come_since() -> None:
    recent = Recent(items=("c", "d", "e"), total=5)
    assert recent.since(5) == ()
    assert recent.since(4) == ("e",)
    assert recent.since(0) == ("c", "d", "e")
