"""Recognises data files that hold no rows as they are: packed or binary files, and tables written by column."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from rlhf.data.columns import COLUMNS, STANDARD
from rlhf.data.shapes import are_turns
from rlhf.errors import UserError

LONGEST_MAGIC = 16  # bytes
_UNPACK = "unpack it first: {how} {name}"
_EXCEL = "pandas: read_excel('{name}').to_json('rows.jsonl', orient='records', lines=True)"
_BY_COLUMN = (
    "write one object per row, for example by pandas: "
    "read_json('{name}').to_json('rows.jsonl', orient='records', lines=True)"
)
_MAGIC: dict[bytes, tuple[str, str]] = {
    b"\x28\xb5\x2f\xfd": ("packed by zstd", _UNPACK.format(how="zstd -d", name="{name}")),
    b"BZh": ("packed by bzip2", _UNPACK.format(how="bunzip2", name="{name}")),
    b"\xfd7zXZ": ("packed by xz", _UNPACK.format(how="unxz", name="{name}")),
    b"\x04\x22\x4d\x18": ("packed by lz4", _UNPACK.format(how="lz4 -d", name="{name}")),
    b"7z\xbc\xaf": ("a 7z archive", _UNPACK.format(how="7z x", name="{name}")),
    b"PK\x03\x04": ("a zip archive", _UNPACK.format(how="unzip", name="{name}")),
    b"\xd0\xcf\x11\xe0": ("an Excel workbook", f"write its rows as JSONL, for example by {_EXCEL}"),
    b"PAR1": ("a Parquet file", "set data.format=parquet, or name it {name}.parquet"),
    b"ARROW1": ("an Arrow file", "write its rows as Parquet or JSONL"),
    b"SQLite format 3": ("an SQLite database", "write its rows as JSONL"),
}
"""First bytes of a file → what it is, and how to get rows out of it. Files packed by gzip are read."""
_WORKBOOKS = (".xlsx", ".xlsm", ".ods")


def refuse_binary(file: Path, begun: bytes) -> None:
    """Refuse a file whose first bytes are those of a packed or binary format.

    Raises:
        UserError: what the file is, and how to convert it.
    """
    for magic, (what, fix) in _MAGIC.items():
        if begun.startswith(magic):
            if magic == b"PK\x03\x04" and file.suffix.lower() in _WORKBOOKS:
                what, fix = _MAGIC[b"\xd0\xcf\x11\xe0"]
            raise UserError(
                f"'{file}' is {what}",
                "data is read from JSONL, JSON and Parquet files, packed by gzip or not",
                fix.format(name=file.name),
            )


def refuse_columns(file: Path, value: object) -> None:
    """Refuse a file that is one JSON object of columns, or that holds its rows under a key.

    Raises:
        UserError: how the file is written, and how to convert it.
    """
    if not isinstance(value, Mapping):
        return
    if name := _key_of_rows(value):
        raise UserError(
            f"'{file}' holds its rows under the key '{name}'",
            "a JSON data file is a list of rows, or has one row per line",
            f"write the rows alone, for example by `jq -c '.[\"{name}\"][]' {file.name} > rows.jsonl`",
        )
    if columns := _columns_of(value):
        raise UserError(
            f"'{file}' is written by column: {', '.join(columns[:6])} each hold the values of all rows",
            "as one row they would be one conversation",
            _BY_COLUMN.format(name=file.name),
        )


def _key_of_rows(value: Mapping[str, object]) -> str | None:
    """The key of the only list of objects that are no turns, beside no column with a meaning."""
    known = {*COLUMNS, *(name for names in STANDARD.values() for name in names)}
    lists = [
        name
        for name, inner in value.items()
        if isinstance(inner, list) and inner and all(isinstance(each, dict) for each in inner) and not are_turns(inner)
    ]
    return lists[0] if len(lists) == 1 and known.isdisjoint(value) else None


def _columns_of(value: Mapping[str, object]) -> list[str]:
    """Names of the columns of a table: lists of one length, or objects with one set of numbered keys, as pandas writes.

    Empty if the object is one row. Its conversations and tools are lists too, of objects.
    """
    sizes: dict[object, list[str]] = {}
    for name, inner in value.items():
        if isinstance(inner, list) and len(inner) > 1 and not all(isinstance(each, dict) for each in inner):
            sizes.setdefault(len(inner), []).append(name)
        elif isinstance(inner, dict) and inner and all(key.isdecimal() for key in inner):
            sizes.setdefault(tuple(inner), []).append(name)
    return next((names for names in sizes.values() if len(names) > 1), [])
