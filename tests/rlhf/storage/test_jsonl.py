from __future__ import annotations

import json
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pytest

from rlhf.errors import UserError
from rlhf.storage import jsonl
from rlhf.storage.jsonl import append_line, given_rows, json_safe, read_lines
from rlhf.storage.locking import try_lock


def test_numbers_of_every_kind_become_json() -> None:
    row = {
        "a": np.float32(0.5),
        "b": np.int64(3),
        "c": float("nan"),
        "d": [float("inf"), True],
        "e": Path("x/y"),
        "f": None,
    }
    assert json_safe(row) == {"a": 0.5, "b": 3, "c": None, "d": [None, True], "e": "x/y", "f": None}
    assert json_safe(True) is True


def test_text_of_any_script_survives_the_file(tmp_path: Path) -> None:
    text = "añ 旅 \u2028 \n \udc80"
    append_line(tmp_path / "rows.jsonl", {"text": text})
    append_line(tmp_path / "rows.jsonl", {"text": "second"})
    assert read_lines(tmp_path / "rows.jsonl") == [{"text": text}, {"text": "second"}]


def test_a_torn_last_line_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    append_line(path, {"step": 1})
    with path.open("a") as file:
        file.write('{"step": 2, "trai')
    assert read_lines(path) == [{"step": 1}]
    assert [json.loads(line) for line in path.read_text().splitlines()[:1]] == [{"step": 1}]


def test_a_missing_file_has_no_rows(tmp_path: Path) -> None:
    assert read_lines(tmp_path / "none.jsonl") == []


@pytest.mark.parametrize(
    "torn", [b"{", b'{"step": 2, "trai', b"x" * 200_000, '{"text": "ä'.encode()[:-1], b'{"step": 2}']
)
@pytest.mark.parametrize("rows", [[], [{"step": 0}, {"step": 1}]])
def test_a_torn_line_does_not_swallow_the_next(tmp_path: Path, torn: bytes, rows: list[dict[str, int]]) -> None:
    path = tmp_path / "rows.jsonl"
    for row in rows:
        append_line(path, row)
    with path.open("ab") as file:
        file.write(torn)
    append_line(path, {"step": 3})
    append_line(path, {"step": 4})
    assert read_lines(path) == [*rows, {"step": 3}, {"step": 4}]
    assert [json.loads(line) for line in path.read_bytes().split(b"\n")[:-1]] == read_lines(path)


def test_long_rows_stay_whole(tmp_path: Path) -> None:
    rows = [{"text": letter * 200_000} for letter in "ab"]
    for row in rows:
        append_line(tmp_path / "rows.jsonl", row)
    assert read_lines(tmp_path / "rows.jsonl") == rows


def test_a_users_file_may_have_blank_lines_any_line_breaks_a_mark_and_no_last_break() -> None:
    content = b'\xef\xbb\xbf{"a": 1}\r\n\n  \n{"a": 2}'
    assert given_rows(content, "rows.jsonl") == [(1, {"a": 1}), (4, {"a": 2})]
    for wrong in (b'{"a": 1}\n[2]', b'{"a": 1}\n{"a": 2', b'{"a": 1}\n' + b"[" * 100_000):
        with pytest.raises(UserError, match="rows.jsonl:2 is no JSON object"):
            given_rows(wrong, "rows.jsonl")


@pytest.mark.parametrize("is_shared", [True, False])
def test_a_shared_file_is_locked_while_a_torn_line_is_cut(
    is_shared: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another process that is still writing its line is waited for; afterwards the lock is free."""
    path, found = tmp_path / "rows.jsonl", list[bool | None]()

    def cut(file: BinaryIO) -> None:
        with path.open("ab") as other:
            found.append(try_lock(other))

    monkeypatch.setattr(jsonl, "_cut_torn_line", cut)
    append_line(path, {"step": 1}, is_shared)
    with path.open("ab") as other:
        found.append(try_lock(other))
    assert found == [not is_shared, True], "a run waits for nobody who reads its files"
    assert read_lines(path) == [{"step": 1}]
