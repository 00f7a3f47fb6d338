"""Files that hold no rows as they are: the refusal names the cause and the way to convert them."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import zipfile
from pathlib import Path

import pytest

from rlhf.config.schema import DataConfig
from rlhf.data.formats import load_preferences
from rlhf.errors import UserError

ROWS = [{"prompt": f"q{i}", "chosen": "a", "rejected": "b"} for i in range(4)]
JSONL = "".join(json.dumps(row) + "\n" for row in ROWS).encode()
COLUMNS = {name: [row[name] for row in ROWS] for name in ROWS[0]}
INDEXED = {name: {str(i): value for i, value in enumerate(values)} for name, values in COLUMNS.items()}
ZSTD = b"\x28\xb5\x2f\xfd" + bytes(20)


def refusal(path: Path, data: bytes, **options: object) -> UserError:
    path.write_bytes(data)
    with pytest.raises(UserError) as caught:
        load_preferences(DataConfig(path=str(path), **options))
    return caught.value


@pytest.mark.parametrize(
    ("name", "data", "what", "fix"),
    [
        ("rows.jsonl.zst", ZSTD, "is packed by zstd", "zstd -d rows.jsonl.zst"),
        ("rows.jsonl.bz2", bz2.compress(JSONL), "is packed by bzip2", "bunzip2 rows.jsonl.bz2"),
        ("rows.jsonl.xz", lzma.compress(JSONL), "is packed by xz", "unxz rows.jsonl.xz"),
        ("rows.jsonl", ZSTD, "is packed by zstd", "zstd -d rows.jsonl"),
        ("rows.json", bz2.compress(JSONL), "is packed by bzip2", "bunzip2 rows.json"),
        ("rows.xls", b"\xd0\xcf\x11\xe0" + bytes(20), "is an Excel workbook", "read_excel('rows.xls')"),
        ("rows.jsonl", b"PAR1" + bytes(20), "is a Parquet file", "data.format=parquet"),
        ("rows.jsonl", ("\n" + JSONL.decode()).encode("utf-16-le"), "is UTF-16 or UTF-32", "iconv"),
        ("rows.jsonl", (" " + JSONL.decode()).encode("utf-16-be"), "is UTF-16 or UTF-32", "iconv"),
        ("rows.jsonl", (" " + JSONL.decode()).encode("utf-32-le"), "is UTF-16 or UTF-32", "iconv"),
    ],
)
@pytest.mark.parametrize("format", ["auto", "jsonl"])
def test_a_packed_or_binary_file_is_named(
    tmp_path: Path, name: str, data: bytes, what: str, fix: str, format: str
) -> None:
    error = refusal(tmp_path / name, data, format=format)
    assert what in error.what and fix in error.fix and "data.columns" not in error.fix


@pytest.mark.parametrize(("name", "what"), [("rows.xlsx", "an Excel workbook"), ("rows.zip", "a zip archive")])
def test_a_workbook_is_told_from_an_archive(tmp_path: Path, name: str, what: str) -> None:
    with zipfile.ZipFile(tmp_path / name, "w") as archive:
        archive.writestr("rows.jsonl", JSONL)
    assert what in refusal(tmp_path / name, (tmp_path / name).read_bytes()).what


@pytest.mark.parametrize("indent", [None, 2])
@pytest.mark.parametrize(
    ("value", "what", "fix"),
    [
        (COLUMNS, "is written by column: prompt, chosen, rejected", "read_json('rows.json')"),
        ({"version": "1", **COLUMNS}, "is written by column: prompt, chosen, rejected", "orient='records', lines=True"),
        (INDEXED, "is written by column: prompt, chosen, rejected", "read_json('rows.json')"),
        ({"data": ROWS}, "holds its rows under the key 'data'", "jq -c '.[\"data\"][]' rows.json"),
        ({"version": "1", "rows": ROWS}, "holds its rows under the key 'rows'", "rows.jsonl"),
    ],
)
def test_a_table_that_is_no_list_of_rows_is_refused(
    tmp_path: Path, value: object, what: str, fix: str, indent: int | None
) -> None:
    error = refusal(tmp_path / "rows.json", json.dumps(value, indent=indent).encode())
    assert what in error.what and fix in error.fix


def test_one_object_over_several_lines_is_refused(tmp_path: Path) -> None:
    error = refusal(tmp_path / "rows.json", json.dumps(ROWS[0], indent=1).encode())
    assert "is one JSON object over several lines" in error.what and "jq -c" in error.fix


TURNS = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
OTHER = [TURNS[0], {"role": "assistant", "content": "b"}]


@pytest.mark.parametrize(
    "row",
    [
        ROWS[0],
        {"chosen": TURNS, "rejected": OTHER},
        {"chosen": TURNS, "rejected": OTHER, "tags": ["x", "y"]},
        {"prompt": ["q"], "chosen": ["a"], "rejected": ["b"]},
    ],
)
def test_one_row_in_a_json_file_is_a_row(tmp_path: Path, row: dict[str, object]) -> None:
    (tmp_path / "rows.json").write_text(json.dumps(row))
    assert len(load_preferences(DataConfig(path=str(tmp_path / "rows.json"))).rows) == 1


def test_lists_of_turns_in_lines_are_rows(tmp_path: Path) -> None:
    row = {"prompt": ["q", "r"], "chosen": ["a", "c"], "rejected": ["a", "d"]}
    for name, packed in (("rows.jsonl", False), ("rows.json", False), ("rows.json.gz", True)):
        data = (json.dumps(row) + "\n").encode() * (1 if name == "rows.jsonl" else 2)
        (tmp_path / name).write_bytes(gzip.compress(data) if packed else data)
        assert load_preferences(DataConfig(path=str(tmp_path / name))).rows
