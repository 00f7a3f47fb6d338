"""Ninety data files with rows that cannot be used, or that cannot be read at all, made from good rows by a seed."""

from __future__ import annotations

import gzip
import io
import json
import random
from dataclasses import dataclass, field
from typing import Any

import pyarrow
import pyarrow.parquet

SEED = 30
GOOD_ROWS = 6
DEEP = "[" * 100_000
HALF = "\ud800"
"""Half of a surrogate pair: JSON can hold it, UTF-8 cannot."""

Row = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class BadFile:
    """A file, its usable rows, and the expected reports of the others."""

    name: str
    file: str
    data: bytes
    stage: str = "demonstrations"
    """Which of a recipe's three kinds of data it is given as."""
    good: int = 0
    """Usable rows."""
    bad: dict[int, str] = field(default_factory=dict)
    """Line → category of each bad row."""
    refused: str | None = None
    """Part of the refusal where the file as a whole cannot be used, for any ``data.bad_rows``."""
    settings: tuple[str, ...] = ()
    """More of ``data``'s settings."""


def good_rows(stage: str, count: int = GOOD_ROWS) -> list[Row]:
    """Rows that every reader takes."""
    if stage == "demonstrations":
        return [{"prompt": f"Question {i}?", "completion": f" Answer {i}."} for i in range(count)]
    if stage == "prompts":
        return [{"prompt": f"Question {i}?"} for i in range(count)]
    if stage == "hh":
        ask = "\n\nHuman: Question {}?\n\nAssistant:"
        return [{"chosen": f"{ask.format(i)} Yes.", "rejected": f"{ask.format(i)} No."} for i in range(count)]
    return [{"prompt": f"Question {i}?", "chosen": " Yes.", "rejected": " No.", "margin": 1.0} for i in range(count)]


def lines_of(rows: list[Row]) -> list[bytes]:
    """JSONL, line by line."""
    return [json.dumps(row).encode() for row in rows]


def bad_files() -> list[BadFile]:
    """All of them; the same whenever they are made."""
    draw = random.Random(SEED)
    rows = [_with_bad_line(draw, name, stage, line, reason) for name, (stage, line, reason) in _bad_lines().items()]
    return [*rows, *_several(), *_whole_files(), *_json_lists(), *_parquet(), *_folders_and_names()]


def flipped_files() -> list[BadFile]:
    """Files in which a few bits are wrong, anywhere; the number of usable rows is not known."""
    draw = random.Random(SEED)
    rows = good_rows("preferences", 40)
    jsonl = b"\n".join(lines_of(rows))
    plain, packed = _table(rows, compression="none"), _table(rows, compression="snappy")
    kinds = {"rows.jsonl": jsonl, "rows.jsonl.gz": gzip.compress(jsonl), "a.parquet": plain, "b.parquet": packed}
    return [
        BadFile(name=f"bits flipped in {file}, {i}", file=file, data=_flip(draw, data), stage="preferences")
        for file, data in kinds.items()
        for i in range(4)
    ]


def _flip(draw: random.Random, data: bytes) -> bytes:
    damaged = bytearray(data)
    for _ in range(draw.choice((1, 3, 20))):
        damaged[draw.randrange(4, len(damaged) - 8)] ^= 1 << draw.randrange(8)
    return bytes(damaged)


def _with_bad_line(draw: random.Random, name: str, stage: str, line: bytes | Row, category: str) -> BadFile:
    """Good rows and, somewhere among them, a bad one."""
    lines, place = lines_of(good_rows(stage)), draw.randrange(GOOD_ROWS + 1)
    lines.insert(place, line if isinstance(line, bytes) else json.dumps(line).encode())
    return BadFile(
        name=name,
        file="rows.jsonl",
        data=b"\n".join(lines) + b"\n",
        stage="preferences" if stage == "hh" else stage,
        good=GOOD_ROWS,
        bad={place + 1: category},
    )


def _bad_lines() -> dict[str, tuple[str, bytes | Row, str]]:
    """Name → stage, line, category."""
    return {**_broken_json(), **_bad_demonstrations(), **_bad_preferences(), **_bad_prompts(), **_bad_transcripts()}


def _broken_json() -> dict[str, tuple[str, bytes | Row, str]]:
    lines: dict[str, tuple[bytes, str]] = {
        "a line cut off": (b'{"prompt": "a", "compl', "not JSON"),
        "a comma too many": (b'{"prompt": "a", "completion": "b",}', "not JSON"),
        "single quotes": (b"{'prompt': 'a', 'completion': 'b'}", "not JSON"),
        "two objects": (b'{"prompt": "a"} {"completion": "b"}', "not JSON"),
        "null bytes inside": (b'{"prompt": "a\0", "completion": "b"}', "not JSON"),
        "null bytes alone": (b"\0" * 4096, "not JSON"),
        "plain text": (b"prompt,completion", "not JSON"),
        "Latin-1": (b'{"prompt": "caf\xe9", "completion": "b"}', "not UTF-8"),
        "an overlong slash": (b'{"prompt": "\xc0\xaf", "completion": "b"}', "not UTF-8"),
        "a list": (b'["prompt", "completion"]', "not an object"),
        "a number": (b"17", "not an object"),
        "null": (b"null", "not an object"),
        "brackets a hundred thousand deep": (DEEP.encode(), "not JSON"),
        "thousands of digits": (b'{"prompt": "a", "completion": ' + b"9" * 5000 + b"}", "not JSON"),
    }
    return {name: ("demonstrations", *rest) for name, rest in lines.items()}


def _bad_demonstrations() -> dict[str, tuple[str, bytes | Row, str]]:
    rows: dict[str, tuple[Row, str]] = {
        "no prompt": ({"completion": "b"}, "columns missing"),
        "no completion": ({"prompt": "a"}, "columns missing"),
        "no column at all": ({}, "columns missing"),
        "a prompt that is a number": ({"prompt": 3, "completion": "b"}, "not text"),
        "a prompt that is true": ({"prompt": True, "completion": "b"}, "not text"),
        "a prompt that is an object": ({"prompt": {"text": "a"}, "completion": "b"}, "not text"),
        "a prompt that is null": ({"prompt": None, "completion": "b"}, "not text"),
        "a prompt of nested lists": ({"prompt": [[["a"]]], "completion": "b"}, "not messages"),
        "a prompt of no messages": ({"prompt": [], "completion": "b"}, "not messages"),
        "an empty prompt": ({"prompt": "", "completion": "b"}, "empty prompt"),
        "an empty completion": ({"prompt": "a", "completion": ""}, "empty completion"),
        "a completion of white space": ({"prompt": "a", "completion": " \n\t"}, "empty completion"),
        "a completion that is null": ({"prompt": "a", "completion": None}, "not text"),
        "half of a character": ({"prompt": f"a{HALF}", "completion": "b"}, "not Unicode"),
        "half of a character in the answer": ({"prompt": "a", "completion": HALF}, "not Unicode"),
        "label false": ({"prompt": "a", "completion": "b", "label": False}, "label is false"),
        "a label in words": ({"prompt": "a", "completion": "b", "label": "yes"}, "not a label"),
        "messages without an answer": ({"messages": [{"role": "user", "content": "a"}]}, "no assistant turn"),
        "messages that are text": ({"messages": "a"}, "not messages"),
        "a turn that is text": ({"messages": ["a", "b"]}, "not messages"),
        "a turn whose role is a number": ({"messages": [{"role": 1, "content": "a"}]}, "not messages"),
        "a turn whose role is half a character": (
            {"messages": [{"role": HALF, "content": "a"}, {"role": "assistant", "content": "b"}]},
            "not Unicode",
        ),
        "a turn without content": ({"messages": [{"role": "user"}, {"role": "assistant"}]}, "not messages"),
    }
    return {f"demonstration, {name}": ("demonstrations", *rest) for name, rest in rows.items()}


def _bad_preferences() -> dict[str, tuple[str, bytes | Row, str]]:
    pair = {"prompt": "a", "chosen": " b", "rejected": " c"}
    rows: dict[str, tuple[Row | bytes, str]] = {
        "chosen equals rejected": ({**pair, "rejected": " b"}, "chosen equals rejected"),
        "no rejected": ({"prompt": "a", "chosen": " b"}, "columns missing"),
        "no chosen": ({"prompt": "a", "rejected": " b"}, "columns missing"),
        "no prompt": ({"chosen": "b", "rejected": "c"}, "empty prompt"),
        "a prompt that is null": ({**pair, "prompt": None}, "not text"),
        "chosen that is a number": ({**pair, "chosen": 3}, "not text"),
        "rejected that is null": ({**pair, "rejected": None}, "not text"),
        "an empty rejected": ({**pair, "rejected": ""}, "empty rejected"),
        "a margin that is NaN": ({**pair, "margin": float("nan")}, "not a number"),
        "an infinite margin": ({**pair, "margin": float("-inf")}, "not a number"),
        "a margin of 1e400": (b'{"prompt": "a", "chosen": " b", "rejected": " c", "margin": 1e400}', "not a number"),
        "a margin of 500 digits": ({**pair, "margin": 10**500}, "not a number"),
        "a margin beyond single precision": ({**pair, "margin": 1e39}, "not a number"),
        "a margin in words": ({**pair, "margin": "1.0"}, "not a number"),
        "a margin that is true": ({**pair, "margin": True}, "not a number"),
        "answers to two prompts": (
            {
                "chosen": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}],
                "rejected": [{"role": "user", "content": "A"}, {"role": "assistant", "content": "c"}],
            },
            "prompts differ",
        ),
        "messages beside text": ({**pair, "chosen": [{"role": "assistant", "content": "b"}]}, "prompts differ"),
    }
    return {f"preference, {name}": ("preferences", *rest) for name, rest in rows.items()}


def _bad_prompts() -> dict[str, tuple[str, bytes | Row, str]]:
    rows: dict[str, tuple[Row, str]] = {
        "no prompt": ({"title": "a"}, "columns missing"),
        "null": ({"prompt": None}, "not text"),
        "white space": ({"prompt": "  \n"}, "empty prompt"),
        "a list of numbers": ({"prompt": [1, 2]}, "not messages"),
        "half of a character": ({"prompt": HALF}, "not Unicode"),
        "empty messages": ({"messages": [{"role": "user", "content": " "}]}, "empty prompt"),
    }
    return {f"prompt, {name}": ("prompts", *rest) for name, rest in rows.items()}


def _bad_transcripts() -> dict[str, tuple[str, bytes | Row, str]]:
    row = {"chosen": "\n\nHuman: a\n\nAssistant: b", "rejected": "\n\nHuman: a\n\nAssistant: c"}
    rows: dict[str, tuple[Row, str]] = {
        "plain text": ({**row, "rejected": "c"}, "not a transcript"),
        "null": ({**row, "chosen": None}, "not a transcript"),
        "the assistant first": ({**row, "chosen": "\n\nAssistant: b"}, "not a transcript"),
        "an empty answer": ({**row, "chosen": "\n\nHuman: a\n\nAssistant: "}, "empty chosen"),
        "other questions": ({**row, "chosen": "\n\nHuman: A\n\nAssistant: b"}, "prompts differ"),
    }
    return {f"HH, {name}": ("hh", *rest) for name, rest in rows.items()}


def _several() -> list[BadFile]:
    """More than one bad row, and none but bad rows."""
    good = lines_of(good_rows("demonstrations", 3))
    header = b'["prompt", "completion"]'
    hh = lines_of(good_rows("hh", 3))
    long = {"prompt": "x" * 500_000, "completion": "b"}
    return [
        BadFile(
            name="a header on top, and again",
            file="rows.jsonl",
            data=b"\n".join([header, *good[:2], header, good[2]]),
            good=3,
            bad={1: "not an object", 4: "not an object"},
        ),
        BadFile(
            name="a transcript twice",
            file="rows.jsonl",
            data=b"\n".join([*hh, hh[0]]),
            stage="preferences",
            good=3,
            bad={4: "duplicate"},
        ),
        BadFile(name="only headers", file="rows.jsonl", data=header + b"\n" + header, refused="all 2 rows are bad"),
        BadFile(
            name="a prompt of half a million letters",
            file="rows.jsonl",
            data=b"\n".join([*good, *lines_of([long])]),
            good=4,
            settings=("data.long_prompts=error",),
        ),
    ]


def _whole_files() -> list[BadFile]:
    rows = good_rows("demonstrations")
    jsonl = b"\n".join(lines_of(rows))
    packed = gzip.compress(jsonl * 20)
    table = _table(rows)
    files: dict[str, tuple[str, bytes, str]] = {
        "empty": ("rows.jsonl", b"", "no rows in"),
        "blank lines": ("rows.jsonl", b"\n  \n\t\n", "no rows in"),
        "another ending": ("rows.csv", b"prompt,completion\na,b\n", "cannot determine the format"),
        "no ending": ("rows", jsonl, "cannot determine the format"),
        "UTF-16": ("rows.jsonl", jsonl.decode().encode("utf-16"), "is UTF-16"),
        "JSONL named Parquet": ("rows.parquet", jsonl, "cannot be read as Parquet"),
        "Parquet named JSONL": ("rows.jsonl", table, "is a Parquet file"),
        "empty Parquet": ("rows.parquet", b"", "cannot be read as Parquet"),
        "half of a Parquet file": ("rows.parquet", table[: len(table) // 2], "cannot be read as Parquet"),
        "half of a gzip stream": ("rows.jsonl.gz", packed[: len(packed) // 2], "cannot be read to its end"),
        "a gzip stream with a hole": (
            "rows.jsonl.gz",
            packed[:20] + b"\0\0\0" + packed[23:],
            "cannot be read to its end",
        ),
    }
    return [BadFile(name=name, file=file, data=data, refused=refused) for name, (file, data, refused) in files.items()]


def _json_lists() -> list[BadFile]:
    texts = {
        "a list cut off": ('[{"prompt": "a", "completion": "b"},\n{"prom', "rows.json:2: not a JSON list"),
        "a list that does not end": ('[{"prompt": "a", "completion": "b"}\n', "rows.json:2: not a JSON list"),
        "text after the list": ("[]\n[]", "rows.json:1: not a JSON list"),
        "a list a hundred thousand deep": (DEEP, "rows.json:1: not a JSON list"),
        "an empty list": ("[]", "no rows in"),
    }
    broken = [
        BadFile(name=name, file="rows.json", data=text.encode(), refused=refused)
        for name, (text, refused) in texts.items()
    ]
    mixed = json.dumps([*good_rows("demonstrations", 3), 4, None], indent=1).encode()
    bad = {14: "not an object", 15: "not an object"}
    return [*broken, BadFile(name="numbers in a list of rows", file="rows.json", data=mixed, good=3, bad=bad)]


def _table(rows: list[Row], **options: Any) -> bytes:
    buffer = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), buffer, **options)
    return buffer.getvalue()


def _parquet() -> list[BadFile]:
    rows = good_rows("preferences")
    nan = [*rows[:2], {**rows[2], "margin": float("nan")}, *rows[3:]]
    gaps = [rows[0], {**rows[1], "chosen": None}, *rows[2:]]
    twice = io.BytesIO()
    columns = [pyarrow.array(["a", "b"])] * 3
    pyarrow.parquet.write_table(pyarrow.Table.from_arrays(columns, ["prompt", "chosen", "chosen"]), twice)
    garbled = _table(rows, compression="none", use_dictionary=False).replace(b"Question 3?", b"Question \xff?")

    def file(name: str, data: bytes, **more: Any) -> BadFile:
        return BadFile(name=f"Parquet, {name}", file="rows.parquet", data=data, stage="preferences", **more)

    return [
        file("a margin that is NaN", _table(nan), good=5, bad={3: "not a number"}),
        file("a value that is missing", _table(gaps), good=5, bad={2: "not text"}),
        file("text that is not UTF-8", garbled, good=5, bad={4: "not readable"}),
        file("a column twice", twice.getvalue(), refused="two columns 'chosen'"),
        file("numbers for text", _table([{"prompt": 1, "chosen": 2, "rejected": 3}]), refused="no usable row"),
        file("no rows", _empty_table(), refused="no rows in"),
    ]


def _empty_table() -> bytes:
    buffer = io.BytesIO()
    schema = pyarrow.schema([("prompt", pyarrow.string()), ("chosen", pyarrow.string())])
    pyarrow.parquet.write_table(schema.empty_table(), buffer)
    return buffer.getvalue()


def _folders_and_names() -> list[BadFile]:
    """The path is in ``settings``; the file beside it is good."""
    data = b"\n".join(lines_of(good_rows("demonstrations")))
    paths: dict[str, tuple[str, str]] = {
        "a device": ("data.demonstrations=/dev/null", "no data at '/dev/null'"),
        "a home of nobody": ("data.demonstrations=~nobody-there/rows.jsonl", "rows.jsonl"),
        "a name too long for any file": ("data.demonstrations=" + "d" * 5000, "no data at"),
        "a column that is not there": ("data.columns={completion: answer}", "no usable row"),
        "a column of no meaning": ("data.columns={reply: completion}", "which has no meaning here"),
    }
    return [
        BadFile(name=name, file="rows.jsonl", data=data, settings=(setting,), refused=refused)
        for name, (setting, refused) in paths.items()
    ]


DATASET_FOLDERS: dict[str, dict[str, bytes]] = {
    "an empty state": {"state.json": b"{}"},
    "a state that is no JSON": {"state.json": b"{"},
    "a state that is a list": {"state.json": b"[]", "dataset_info.json": b"{}"},
    "splits that are no JSON": {"dataset_dict.json": b"\xff"},
    "splits that are not there": {"dataset_dict.json": b'{"splits": ["train"]}'},
    "an arrow file that is none": {
        "state.json": b'{"_data_files": [{"filename": "a.arrow"}], "_fingerprint": "a", "_format_columns": null, '
        b'"_format_kwargs": {}, "_format_type": null, "_output_all_columns": false, "_split": null}',
        "dataset_info.json": b"{}",
        "a.arrow": b"no arrow",
    },
}
"""Folders of ``datasets`` that are broken: file → content."""
