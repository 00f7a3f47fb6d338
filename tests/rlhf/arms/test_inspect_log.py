"""Logs that ``inspect_ai`` 0.3.285 wrote for its mock model, reduced to the fields that are read."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import pytest

from rlhf.arms.answers import read_arms
from rlhf.arms.compare import compare_arms
from rlhf.arms.inspect_log import is_inspect_log, read_inspect_log
from rlhf.arms.spec import ComparisonConfig
from rlhf.errors import UserError
from tests.rlhf.arms.comparison_files import write_rows

HERE = Path(__file__).parent
BASE, AGENT = (str(HERE / f"inspect_{name}.json") for name in ("base", "agent"))
ZSTANDARD = 93


def archive(path: Path, log: dict[str, Any], method: int = zipfile.ZIP_DEFLATED) -> str:
    """The same log as an ``.eval`` file."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED if method == ZSTANDARD else method) as file:
        file.writestr("header.json", json.dumps({key: value for key, value in log.items() if key != "samples"}))
        for sample in log["samples"]:
            file.writestr(f"samples/{sample['id']}_epoch_{sample['epoch']}.json", json.dumps(sample))
    if method == ZSTANDARD:  # only the number of the method: Python refuses before it reads
        data = path.read_bytes()
        for mark, offset in ((b"PK\x03\x04", 8), (b"PK\x01\x02", 10)):
            parts = data.split(mark)
            data = mark.join([parts[0], *(p[: offset - 4] + b"\x5d\x00" + p[offset - 2 :] for p in parts[1:])])
        path.write_bytes(data)
    return str(path)


def changed(folder: Path, **change: Any) -> str:
    path = folder / "log.json"
    path.write_text(json.dumps({**json.loads(Path(BASE).read_text(encoding="utf-8")), **change}))
    return str(path)


def test_samples_are_rows_with_scores(tmp_path: Path) -> None:
    for file in (AGENT, archive(tmp_path / "a.eval", json.loads(Path(AGENT).read_text(encoding="utf-8")))):
        rows = {(row.source.file.split()[-2], row.source.line): row for row in read_inspect_log(file)}
        assert len(rows) == 4
        tokyo, rome = rows["2,", 2], rows["rome,", 1]
        assert [turn.content for turn in tokyo.prompt] == ["Be brief.", "What is the capital of Japan?"]  # type: ignore[union-attr]
        assert rome.prompt == "What is the capital of Italy?"
        assert (rome.columns["response"], rome.columns["references"]) == ("Rome", ["Rome"])
        assert tokyo.columns["references"] == ["Tokyo", "東京"]
        assert tokyo.columns["scores"] == {"includes": 1.0, "parts/words": 9.0, "parts/short": 0.0}
        assert tokyo.columns["sampling"] == {"max_tokens": 20, "temperature": 0.5}


def test_logs_are_arms_and_items_of_a_comparison() -> None:
    arms = read_arms(BASE, {"base": BASE, "agent": AGENT}, "base")
    assert [item.prompt for item in arms.items] == [
        "Be brief.\n\nWhat is the capital of Japan?",
        "What is the capital of Italy?",
    ]
    assert arms.arms[0].answers == (("It is Kyoto.", "It is Kyoto."), ("It is Milan.", "Rome, I believe."))
    assert arms.arms[0].scores == (
        {"includes": 0.0, "parts/words": 3.0, "parts/short": 1.0},
        {"includes": 0.5, "parts/words": 3.0, "parts/short": 1.0},  # I in one epoch, C in the other
    )
    config = ComparisonConfig(
        items=BASE, arms={"base": BASE, "agent": AGENT}, base="base", metrics=["rouge1"], scores=["includes"]
    )
    report = compare_arms(config).report
    assert report.result("includes", "agent").mean.value == 1.0
    difference = report.result("includes", "agent").difference
    assert difference is not None and difference.value == pytest.approx((1.0 + 0.5) / 2)


def test_a_log_is_told_from_rows(tmp_path: Path) -> None:
    rows = write_rows(tmp_path / "rows.json", [{"prompt": "p", "response": "r", "eval": 1}])
    listed = tmp_path / "list.json"
    listed.write_text(json.dumps([{"prompt": "p", "version": 1, "eval": 2}]))
    assert [is_inspect_log(str(file)) for file in (BASE, "none.eval", rows, listed, tmp_path / "none.json")] == [
        *(True, True),
        *(False, False, False),
    ]


SAMPLE = {"id": 1, "epoch": 1, "input": "p", "target": "t"}


@pytest.mark.parametrize(
    ("value", "found"),
    [
        ("P", 0.5),
        ("N", 0.0),
        ("yes", 1.0),
        ("0.25", 0.25),
        (True, 1.0),
        ("good", None),
        ([1], None),
        (float("nan"), None),
    ],
)
def test_values_are_those_of_inspects_value_to_float(tmp_path: Path, value: object, found: float | None) -> None:
    log = changed(tmp_path, samples=[{**SAMPLE, "scores": {"s": {"value": value}}}])
    [row] = read_inspect_log(log)
    assert row.columns["scores"] == ({} if found is None else {"s": found})


def test_a_sample_that_failed_has_no_scores(tmp_path: Path) -> None:
    [row] = read_inspect_log(changed(tmp_path, samples=[{**SAMPLE, "output": {"choices": []}, "scores": None}]))
    assert (row.columns["response"], row.columns["scores"]) == ("", {})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"samples": []}, "has no samples"),
        ({"samples": [{"id": 1}]}, "cannot be read as a log of Inspect"),
        ({"samples": "all"}, "cannot be read as a log of Inspect"),
        ({"plan": None}, "cannot be read as a log of Inspect"),
        ({"samples": [{**SAMPLE, "epoch": "first"}]}, "cannot be read as a log of Inspect"),
        ({"samples": [{**SAMPLE, "epoch": float("inf")}]}, "cannot be read as a log of Inspect"),
    ],
)
def test_what_is_no_log_is_refused(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        read_inspect_log(changed(tmp_path, **change))


def test_an_archive_of_zstandard_names_the_conversion(tmp_path: Path) -> None:
    file = archive(tmp_path / "a.eval", json.loads(Path(AGENT).read_text(encoding="utf-8")), ZSTANDARD)
    with pytest.raises(UserError, match=r"(?s)Zstandard.*inspect log convert --to json"):
        read_inspect_log(file)
    (tmp_path / "b.eval").write_bytes(b"PK\x03\x04 torn")
    (tmp_path / "c.eval").mkdir()
    for broken in ("b.eval", "c.eval", "none.eval"):
        with pytest.raises(UserError, match="cannot be read as a log of Inspect"):
            read_inspect_log(str(tmp_path / broken))


@pytest.mark.parametrize("damage", ["no header", "torn stream", "encrypted"])
def test_a_damaged_archive_is_refused(tmp_path: Path, damage: str) -> None:
    log = json.loads(Path(AGENT).read_text(encoding="utf-8"))
    file = tmp_path / "a.eval"
    archive(file, log)
    if damage == "no header":
        with zipfile.ZipFile(file, "w") as empty:
            empty.writestr("samples/1_epoch_1.json", json.dumps(log["samples"][0]))
    else:
        data = bytearray(file.read_bytes())
        with zipfile.ZipFile(file) as whole:
            start = 30 + len("header.json")  # of the first file's data
            assert whole.infolist()[0].header_offset == 0
        if damage == "torn stream":
            data[start : start + 8] = b"\xff" * 8
        else:
            data[6] |= 1
            data[data.index(b"PK\x01\x02") + 8] |= 1
        file.write_bytes(data)
    reason = {"no header": "holds no header.json", "torn stream": "error: ", "encrypted": "encrypted"}[damage]
    with pytest.raises(UserError, match=f"(?s)cannot be read as a log of Inspect.*{reason}"):
        read_inspect_log(str(file))
