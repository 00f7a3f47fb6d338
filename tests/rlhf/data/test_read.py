from __future__ import annotations

import gzip
import json
from pathlib import Path

import datasets
import pyarrow
import pyarrow.parquet
import pytest

from rlhf.config.schema import DataConfig
from rlhf.data.formats import load_demonstrations
from rlhf.data.read import RawRow, read_rows
from rlhf.errors import UserError
from rlhf.records import BadRow, DataFile, RowLocation

ROWS = [{"prompt": "a", "completion": "b"}, {"prompt": "ä\u2028c", "completion": "d"}]
JSONL = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS).encode()


def columns(path: Path | str, **options: object) -> list[dict[str, object]]:
    rows = list(read_rows(str(path), **options))
    assert all(isinstance(row, RawRow) for row in rows), rows
    return [row.columns for row in rows]


@pytest.mark.parametrize(
    "name",
    ["rows.jsonl", "rows.jsonl.gz", "rows.json", "ROWS.JSONL", "rows.Jsonl.GZ", "rows.ndjson", "rows.jsonlines.gz"],
)
def test_jsonl_is_read_plain_packed_or_named_json(tmp_path: Path, name: str) -> None:
    data = gzip.compress(JSONL) if name.lower().endswith("gz") else JSONL
    (tmp_path / name).write_bytes(data)
    assert columns(tmp_path / name) == columns(tmp_path) == ROWS


def test_a_byte_order_mark_and_windows_line_ends_are_no_errors(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_bytes(b"\xef\xbb\xbf" + JSONL.replace(b"\n", b"\r\n"))
    assert columns(tmp_path / "rows.jsonl") == ROWS


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.jsonl.gz", "rows.json", "list.json", "list.json.gz"])
def test_a_byte_order_mark_is_dropped_from_every_kind_of_text(tmp_path: Path, name: str) -> None:
    data = b"\xef\xbb\xbf" + (json.dumps(ROWS).encode() if "list" in name else JSONL)
    (tmp_path / name).write_bytes(gzip.compress(data) if name.endswith("gz") else data)
    assert columns(tmp_path / name) == ROWS


def test_files_that_were_joined_with_their_byte_order_marks(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_bytes(b"\xef\xbb\xbf" + JSONL + b"\xef\xbb\xbf" + JSONL)
    assert columns(tmp_path / "rows.jsonl") == ROWS * 2


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32"])
@pytest.mark.parametrize("name", ["rows.jsonl", "rows.jsonl.gz", "list.json"])
def test_other_unicode_encodings_are_named(tmp_path: Path, encoding: str, name: str) -> None:
    data = (json.dumps(ROWS) if "list" in name else JSONL.decode()).encode(encoding)
    (tmp_path / name).write_bytes(gzip.compress(data) if name.endswith("gz") else data)
    with pytest.raises(UserError, match="is UTF-16 or UTF-32") as caught:
        columns(tmp_path / name)
    assert "iconv" in caught.value.fix


def digests(path: Path, **options: object) -> list[tuple[int, str]]:
    files: list[DataFile] = []
    list(read_rows(str(path), files=files, **options))
    return [(file.rows, file.digest) for file in files]


def written(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def test_a_digest_is_of_the_content_and_not_of_name_or_packing(tmp_path: Path) -> None:
    """BLAKE2b of 16 bytes over the lines, from `b2sum --length=128` of the test's file."""
    [(rows, digest)] = digests(written(tmp_path / "a.jsonl", b'{"a": 1}\n{"a": 2}\n'))
    assert (rows, digest) == (2, "3e91133d8bd8f00b3d06fa60a9953506")
    assert digests(written(tmp_path / "b.jsonl.gz", gzip.compress(b'{"a": 1}\n{"a": 2}\n'))) == [(2, digest)]
    assert digests(written(tmp_path / "c.json", b'\xef\xbb\xbf{"a": 1}\r\n\r\n{"a": 2}')) == [(2, digest)]
    assert digests(written(tmp_path / "d.jsonl", b'{"a": 1}\n{"a": 3}\n')) != [(2, digest)]


def test_a_digest_is_of_the_rows_that_are_read(tmp_path: Path) -> None:
    first = written(tmp_path / "a.jsonl", b'{"a": 1}\n{"a": 2}\n')
    second = written(tmp_path / "b.jsonl", b'{"a": 1}\n{"a": 2}\nnot json\n')
    assert digests(first) != digests(second) and digests(second)[0][0] == 3
    assert digests(first, max_rows=1) == digests(second, max_rows=1)


@pytest.mark.parametrize("kind", ["parquet", "datasets", "json", "folder"])
def test_every_kind_of_data_has_a_digest(tmp_path: Path, kind: str) -> None:
    def make(name: str, rows: list[dict[str, str]]) -> Path:
        place = tmp_path / name
        if kind == "parquet":
            pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), place.with_suffix(".parquet"))
            return place.with_suffix(".parquet")
        if kind == "json":
            return written(place.with_suffix(".json"), json.dumps(rows).encode())
        if kind == "datasets":
            datasets.Dataset.from_list(rows).save_to_disk(place)
            return place
        place.mkdir()
        for i, row in enumerate(rows):
            written(place / f"{i}.jsonl", json.dumps(row).encode())
        return place

    one, same, other = make("one", ROWS), make("same", ROWS), make("other", [ROWS[0], {**ROWS[1], "completion": "x"}])
    assert digests(one) == digests(same) != digests(other)
    assert sum(rows for rows, _ in digests(one)) == 2


def test_an_explicit_format_wins_over_the_name(tmp_path: Path) -> None:
    (tmp_path / "rows.txt").write_bytes(JSONL)
    assert columns(tmp_path / "rows.txt", format="jsonl") == ROWS
    with pytest.raises(UserError, match="cannot determine the format"):
        columns(tmp_path / "rows.txt")


def test_lines_are_counted_with_the_blank_ones(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"a": 1}\n\n   \n{"a": 2}\n')
    assert [row.source.line for row in read_rows(str(tmp_path / "rows.jsonl"))] == [1, 4]


@pytest.mark.parametrize(
    ("line", "category", "detail"),
    [
        (b'{"a": ', "not JSON", "column"),
        (b"plain text", "not JSON", "column 1"),
        (b'{"a": "\xff"}', "not UTF-8", "byte 8"),
        (b"[1, 2]", "not an object", "list"),
        (b"null", "not an object", "NoneType"),
        (b"[" * 100_000, "not JSON", "recursion"),
        (b'{"a": ' + b"9" * 5000 + b"}", "not JSON", "4300 digits"),
        (b'{"a": {"b": 1, "c": 2, "b": 3}}', "ambiguous", "the key 'b' occurs twice"),
    ],
)
def test_a_broken_line_is_a_bad_row_and_the_rest_is_read(
    tmp_path: Path, line: bytes, category: str, detail: str
) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_bytes(b'{"a": 1}\n' + line + b'\n{"a": 3}\n')
    first, bad, last = read_rows(str(file))
    assert (first.columns, last.columns, last.source) == ({"a": 1}, {"a": 3}, RowLocation(str(file), 3))
    assert isinstance(bad, BadRow) and bad.source == RowLocation(str(file), 2)
    assert bad.category == category and detail in bad.reason


def test_rows_of_a_json_list_know_the_line_on_which_they_begin(tmp_path: Path) -> None:
    (tmp_path / "rows.json").write_text('[\n  {"a": 1,\n   "b": 2},\n\n  {"a": 3}, 4\n]\n')
    first, second, bad = read_rows(str(tmp_path / "rows.json"))
    assert (first.source.line, first.columns) == (2, {"a": 1, "b": 2})
    assert (second.source.line, second.columns) == (5, {"a": 3})
    assert isinstance(bad, BadRow) and bad.source.line == 5


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ('[{"a": 1},\n{"a": ', 2),
        ('[{"a": 1},\n{"a": 1, "a": 2}]', 2),
        ('[{"a": 1}\n', 2),
        ('{"a": 1}', 1),
        ("[]\n[]", 1),
        ("", 1),
    ],
)
def test_a_broken_json_list_is_refused_with_its_line(tmp_path: Path, text: str, line: int) -> None:
    (tmp_path / "rows.json").write_text(text)
    with pytest.raises(UserError, match=rf"rows\.json:{line}: not a JSON list"):
        columns(tmp_path / "rows.json", format="json")


def test_parquet_rows_are_numbered(tmp_path: Path) -> None:
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), tmp_path / "rows.parquet")
    assert columns(tmp_path / "rows.parquet") == ROWS
    assert [row.source.line for row in read_rows(str(tmp_path / "rows.parquet"))] == [1, 2]


def test_what_is_not_parquet_is_refused(tmp_path: Path) -> None:
    (tmp_path / "rows.parquet").write_bytes(JSONL)
    with pytest.raises(UserError, match="cannot be read as Parquet"):
        columns(tmp_path / "rows.parquet")


def test_a_saved_dataset_is_read_with_or_without_splits(tmp_path: Path) -> None:
    table = datasets.Dataset.from_list(ROWS)
    table.save_to_disk(tmp_path / "one")
    datasets.DatasetDict(train=table, test=table.select([1])).save_to_disk(tmp_path / "splits")
    assert columns(tmp_path / "one") == ROWS
    assert columns(tmp_path / "splits") == ROWS
    assert columns(tmp_path / "splits", split="test") == ROWS[1:]
    with pytest.raises(UserError, match="its splits are train, test"):
        columns(tmp_path / "splits", split="validation")


def test_a_folder_is_read_by_split_or_whole(tmp_path: Path) -> None:
    for name, value in [("a", 1), ("b", 2), ("test", 3)]:
        (tmp_path / f"{name}.jsonl").write_text(f'{{"value": {value}}}\n')
    (tmp_path / "notes.md").write_text("not data")
    assert columns(tmp_path, split="test") == [{"value": 3}]
    assert columns(tmp_path, split="train") == [{"value": 1}, {"value": 2}, {"value": 3}]


SHARD = "train-00000-of-00001-0123456789abcdef.jsonl"


def folder_of(place: Path, *names: str) -> Path:
    """A folder of files, each with one row that holds its name."""
    for name in names:
        (place / name).write_text(json.dumps({"of": name}) + "\n")
    return place


def read_of(place: Path, split: str = "train") -> list[object]:
    return [row["of"] for row in columns(place, split=split)]


@pytest.mark.parametrize(
    ("names", "split", "expected"),
    [
        (("train.jsonl", "train_sft.jsonl", "training.jsonl", "test.jsonl"), "train", ["train.jsonl"]),
        (("Train.JSONL", "test.jsonl"), "train", ["Train.JSONL"]),
        (("train_sft.jsonl", "test_sft.jsonl"), "train", ["train_sft.jsonl"]),
        (("train_sft.jsonl", "train_prefs.jsonl"), "train_prefs", ["train_prefs.jsonl"]),
        (
            ("train-00000-of-00002.jsonl", "train-00001-of-00002.jsonl", "train_sft-00000-of-00001.jsonl"),
            "train",
            ["train-00000-of-00002.jsonl", "train-00001-of-00002.jsonl"],
        ),
        ((SHARD, "train_x.jsonl"), "train", [SHARD]),
        (("train1.jsonl", "train2.jsonl"), "train", ["train1.jsonl", "train2.jsonl"]),
        (("train1.jsonl", "train2.jsonl"), "train2", ["train2.jsonl"]),
        (("gsm_test.jsonl", "gsm_train.jsonl"), "train", ["gsm_train.jsonl"]),
        (("0000.jsonl", "0001.jsonl"), "train", ["0000.jsonl", "0001.jsonl"]),
        (("train_sft.jsonl", "train_prefs.jsonl"), "all", ["train_prefs.jsonl", "train_sft.jsonl"]),
    ],
)
def test_the_split_of_a_folder_is_the_files_of_that_name(tmp_path: Path, names, split, expected) -> None:
    assert read_of(folder_of(tmp_path, *names), split) == expected


@pytest.mark.parametrize(
    ("names", "listed"),
    [
        (("train_sft.jsonl", "train_prefs.jsonl", "test.jsonl"), "train_prefs, train_sft"),
        (("main_train.jsonl", "socratic_train.jsonl"), "main_train, socratic_train"),
    ],
)
def test_a_split_that_fits_several_is_refused_with_their_names(tmp_path: Path, names, listed: str) -> None:
    with pytest.raises(UserError, match=rf"data\.split=train fits several splits in .*: {listed}") as caught:
        read_of(folder_of(tmp_path, *names))
    assert f"data.split={listed.partition(',')[0]}" in caught.value.fix


@pytest.mark.parametrize("other", ["train.parquet", "train.jsonl.gz", "TRAIN.json"])
def test_one_name_in_several_formats_is_refused(tmp_path: Path, other: str) -> None:
    folder_of(tmp_path, "train.jsonl", other, "test.jsonl", "test.json")
    with pytest.raises(UserError, match="are one name in several formats") as caught:
        read_of(tmp_path)
    assert {*caught.value.what.partition(" in ")[0].split(" and ")} == {"train.jsonl", other}
    assert columns(tmp_path / "train.jsonl") == [{"of": "train.jsonl"}]


def test_other_files_of_a_data_folder_are_reported(tmp_path: Path) -> None:
    (tmp_path / "more").mkdir()
    (tmp_path / ".cache").mkdir()
    names = ("README.md", "LICENSE", ".gitattributes", "dataset_info.json", "rows.csv", "test.jsonl", "train_x.jsonl")
    folder_of(tmp_path, "train.jsonl", *names)
    remarks: list[str] = []
    assert len(list(read_rows(str(tmp_path), remarks=remarks))) == 1
    assert remarks == [f"not read of '{tmp_path}': more/, rows.csv, train_x.jsonl"]
    (tmp_path / "more" / "train.jsonl").write_bytes(JSONL)
    assert list(read_rows(str(tmp_path / "more"), remarks=remarks)) and len(remarks) == 1
    loaded = load_demonstrations(DataConfig(path=str(tmp_path), columns={"text": "of"}))
    assert loaded.remarks == (remarks[0],)


def test_a_folder_of_folders_is_refused_with_what_it_holds(tmp_path: Path) -> None:
    """As in a data set with several configurations, each of which has one."""
    for name in ("main", "socratic"):
        (tmp_path / name).mkdir()
    folder_of(tmp_path, "rows.csv", "README.md")
    with pytest.raises(UserError, match="no data in the folder") as caught:
        columns(tmp_path)
    assert caught.value.why.endswith("it holds main/, rows.csv, socratic/")


def test_a_table_of_text_is_refused_with_advice(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot determine the format") as caught:
        columns(folder_of(tmp_path, "rows.CSV") / "rows.CSV")
    assert "read_csv" in caught.value.fix


def test_max_rows_holds_for_each_file(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / f"{name}.jsonl").write_text('{"value": 1}\n' * 5)
    assert len(columns(tmp_path, max_rows=2)) == 4


def test_a_missing_file_and_a_folder_without_data_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file or folder"):
        columns(tmp_path / "missing.jsonl")
    with pytest.raises(UserError, match="no such file or folder"):
        columns(tmp_path / "missing")
    (tmp_path / "notes.md").write_text("not data")
    with pytest.raises(UserError, match="no file that ends in .jsonl"):
        columns(tmp_path)


def test_a_path_into_a_folder_here_is_no_hub_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "data").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="no such file or folder"):
        columns("data/mistyped")


@pytest.mark.parametrize("name", ["missing.jsonl", "~nobody-there/rows.jsonl"])
def test_the_remedy_for_a_missing_file_names_no_key(name: str) -> None:
    """The file may be one of an option, such as ``--prompts``."""
    with pytest.raises(UserError, match="no data at") as refused:
        columns(name)
    assert "fix: " in str(refused.value) and "data.path" not in str(refused.value)


def test_a_name_that_the_hub_does_not_give_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match="no dataset at 'nobody/no-such-set'(.|\n)*as a name on the hub"):
        columns("nobody/no-such-set")


@pytest.mark.parametrize(
    "damage", [lambda data: data[: len(data) // 2], lambda data: data[:20] + b"\0\0\0" + data[23:]]
)
def test_a_broken_gzip_stream_is_refused(tmp_path: Path, damage: object) -> None:
    (tmp_path / "rows.jsonl.gz").write_bytes(damage(gzip.compress(JSONL * 50)))
    with pytest.raises(UserError, match="cannot be read to its end"):
        columns(tmp_path / "rows.jsonl.gz")


DESCRIPTIONS = ("dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json")


@pytest.mark.parametrize("name", DESCRIPTIONS[:2] + DESCRIPTIONS[3:])
def test_a_file_that_describes_the_data_is_no_data(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text('{"features": {}}')
    with pytest.raises(UserError, match="no data in the folder"):
        columns(tmp_path)
    (tmp_path / "rows.jsonl").write_bytes(JSONL)
    assert columns(tmp_path) == ROWS
