from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from rlhf.tracking.jsonl import append_line, json_safe, read_lines


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
