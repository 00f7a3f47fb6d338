"""Files of a run that were damaged: the error names the file and how to continue."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from rlhf.errors import UserError
from rlhf.storage.jsonl import read_lines
from rlhf.storage.reading import read_json, read_text, require_folder

FIX = "delete it"


def write(content: bytes) -> Callable[[Path], object]:
    return lambda path: path.write_bytes(content)


@pytest.mark.parametrize(
    ("make", "what"),
    [
        (write(b"\xff\xfe"), "is not UTF-8"),
        (Path.mkdir, "cannot be read: Is a directory"),
        (lambda path: path.symlink_to("nowhere"), "cannot be read: No such file"),
        (write(b""), "is not JSON"),
        (write(b"{"), "is not JSON"),
        (write(b"[" * 100_000), "is not JSON"),
        (write(b"[1]"), "holds list and not dict"),
        (write(b"null"), "holds NoneType and not dict"),
        (write(b'{"a": 1}'), ""),
    ],
)
def test_json(tmp_path: Path, make: Callable[[Path], object], what: str) -> None:
    path = tmp_path / "file.json"
    make(path)
    if not what:
        assert read_json(path, dict, FIX) == {"a": 1}
        return
    with pytest.raises(UserError, match=what) as caught:
        read_json(path, dict, FIX)
    assert str(path) in caught.value.what and caught.value.fix == FIX


def test_text(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("ä\n", encoding="utf-8")
    assert read_text(tmp_path / "file", FIX) == "ä\n"


def test_a_folder_may_be_absent_and_is_no_file(tmp_path: Path) -> None:
    require_folder(tmp_path, FIX)
    require_folder(tmp_path / "none", FIX)
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="is a file"):
        require_folder(tmp_path / "file", FIX)


@pytest.mark.parametrize("line", [b"{\n", b"\n", b"\xff\n", b"[1]\n"])
def test_a_damaged_line_is_named(tmp_path: Path, line: bytes) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 0}\n' + line + b'{"step": 2}\n')
    with pytest.raises(UserError, match=r"metrics.jsonl has no JSON object in line 2"):
        read_lines(path)


def test_a_folder_in_place_of_the_lines_is_named(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").mkdir()
    with pytest.raises(UserError, match="metrics.jsonl cannot be read"):
        read_lines(tmp_path / "metrics.jsonl")
