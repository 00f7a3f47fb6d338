"""Halves of surrogate pairs, which UTF-8 cannot encode, in what the project writes."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path

import pytest

from rlhf.data.report import write_bad_rows
from rlhf.records import BadRow, RowLocation
from rlhf.storage.durable import write_atomically
from rlhf.unicode import encodable, escape_in_output


class Text(str):
    """A user's string."""

    def encode(self, *arguments: object, **options: object) -> bytes:
        """Fail."""
        raise SystemExit


def test_halves_of_surrogate_pairs_become_escapes_and_nothing_else_changes() -> None:
    assert encodable("ä 👍 \ud83d \udcff\x00") == "ä 👍 \\ud83d \\udcff\x00"
    assert type(encodable(Text("\ud83d"))) is str


def test_a_json_file_holds_the_same_text(tmp_path: Path) -> None:
    write_atomically(tmp_path / "a", json.dumps(["👍 \ud83d"], ensure_ascii=False))
    assert json.loads((tmp_path / "a").read_text(encoding="utf-8")) == ["👍 \ud83d"]


def test_bad_rows_of_any_text_are_written(tmp_path: Path) -> None:
    write_bad_rows(tmp_path / "bad", [BadRow(source=RowLocation("x.jsonl", 1), reason="\ud83d")])
    assert json.loads((tmp_path / "bad").read_text(encoding="utf-8"))["reason"] == "\ud83d"


class Wrapper:
    """Ray's wrapper of standard output."""

    def __init__(self, stream: io.TextIOWrapper) -> None:
        self.stream = stream


@pytest.mark.parametrize("is_wrapped", [False, True])
def test_any_text_can_be_printed(is_wrapped: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    written = io.BytesIO()
    stream = io.TextIOWrapper(written, encoding="utf-8")
    monkeypatch.setattr(sys, "stdout", Wrapper(stream) if is_wrapped else stream)
    escape_in_output()
    stream.write("\ud83d")
    stream.flush()
    assert written.getvalue() == b"\\ud83d"


def test_a_process_ends_whatever_is_said_of_it() -> None:
    code = "from rlhf.storage.folder_lock import end_process; end_process('lost: run-\\udcff')"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True)
    assert (ended.returncode, ended.stderr) == (3, b"lost: run-\\udcff\n")
