from __future__ import annotations

import json
from pathlib import Path

import pytest

from rlhf.tracking.spans import Span
from rlhf.tracking.trace import TraceFile, read_trace


def span(name: str, begin: float, end: float, step: int | None = None) -> Span:
    return Span(name=name, begin=begin, end=end, step=step)


def slices(path: Path) -> list[tuple[str, str, int, int]]:
    """(row, name, µs of begin, µs of duration) of every slice, by the names that the file gives its rows."""
    events = list(read_trace(path))
    rows = {e["tid"]: e["args"]["name"] for e in events if e["name"] == "thread_name"}
    return [(rows[e["tid"]], e["name"], e["ts"], e["dur"]) for e in events if e["ph"] == "X"]


def test_the_file_is_an_array_of_named_rows_and_slices(tmp_path: Path) -> None:
    trace = TraceFile(tmp_path / "trace.json")
    trace.add("node 10.0.0.2", "policy rank 1", [span("update", 10.0, 12.5, step=4)])
    trace.instant("actor_died", 13.0, "policy rank 1", {"what": "x" * 1000, "node": None})
    trace.instant("resumed", 14.0, "nobody", {})
    trace.close()
    events = json.loads((tmp_path / "trace.json").read_text())
    assert events[:4] == [
        {"ph": "M", "name": "process_name", "pid": 1, "tid": 0, "args": {"name": "node 10.0.0.2"}},
        {"ph": "M", "name": "process_sort_index", "pid": 1, "tid": 0, "args": {"sort_index": 1}},
        {"ph": "M", "name": "thread_name", "pid": 1, "tid": 1001, "args": {"name": "policy rank 1"}},
        {"ph": "M", "name": "thread_sort_index", "pid": 1, "tid": 1001, "args": {"sort_index": 1001}},
    ]
    slice_ = {"ph": "X", "name": "update", "pid": 1, "tid": 1001, "ts": 10_000_000, "dur": 2_500_000}
    assert events[4] == slice_ | {"args": {"step": 4}}
    died = {"ph": "i", "s": "t", "name": "actor_died", "cat": "event", "pid": 1, "tid": 1001, "ts": 13_000_000}
    assert events[5] == died | {"args": {"what": "x" * 300}}
    assert (events[-1]["name"], events[-1]["pid"], events[-1]["tid"]) == ("resumed", 2, 2001)


def test_what_overlaps_without_nesting_gets_a_row_of_its_own(tmp_path: Path) -> None:
    trace = TraceFile(tmp_path / "trace.json")
    trace.add("n", "engine", [span("block", 1, 3), span("generate", 0, 10), span("generate", 5, 15)])
    trace.add("n", "engine", [span("decode", 11, 12), span("generate", 15, 20)])
    assert sorted(slices(trace.path)) == [
        ("engine", "block", 1_000_000, 2_000_000),
        ("engine", "decode", 11_000_000, 1_000_000),
        ("engine", "generate", 0, 10_000_000),
        ("engine", "generate", 15_000_000, 5_000_000),
        ("engine (2)", "generate", 5_000_000, 10_000_000),
    ]


@pytest.mark.parametrize("torn", ["", ',\n{"ph": "X", "name": "half', ",\n", "\n]\n", "\n", "\n]"])
def test_a_resumed_run_appends_to_a_file_with_a_damaged_end(tmp_path: Path, torn: str) -> None:
    path = tmp_path / "trace.json"
    TraceFile(path).add("n", "a", [span("one", 0, 1)])
    with path.open("a") as file:
        file.write(torn)
    assert [name for _, name, *_ in slices(path)] == ["one"]  # readers do not mind
    again = TraceFile(path)
    again.add("n", "b", [span("two", 2, 3)])
    again.add("n", "a", [span("three", 4, 5)])
    again.close()
    events = json.loads(path.read_text())
    assert sum(event["name"] == "thread_name" for event in events) == 2
    assert [(row, name) for row, name, *_ in slices(path)] == [("a", "one"), ("b", "two"), ("a", "three")]


@pytest.mark.parametrize("left", ["", "[", "[\n", "\0\0\0", "{}x"])
def test_a_file_without_any_event_is_begun_again(tmp_path: Path, left: str) -> None:
    path = tmp_path / "trace.json"
    path.write_text(left)
    trace = TraceFile(path)
    trace.add("n", "a", [span("one", 0, 1)])
    trace.close()
    assert [name for _, name, *_ in slices(path)] == ["one"]
    assert isinstance(json.loads(path.read_text()), list)


def test_a_large_file_is_rotated(tmp_path: Path) -> None:
    trace = TraceFile(tmp_path / "trace.json", most_bytes=1000)
    for k in range(40):
        trace.add("n", "a", [span(f"call {k}", k, k + 1)])
    trace.close()
    files = sorted(tmp_path.glob("trace*.json"))
    assert len(files) > 3
    assert all(isinstance(json.loads(file.read_text()), list) for file in files)
    assert sorted(name for file in files for _, name, *_ in slices(file)) == sorted(f"call {k}" for k in range(40))


def test_nothing_is_written_before_there_is_something(tmp_path: Path) -> None:
    trace = TraceFile(tmp_path / "trace.json")
    trace.add("n", "a", [])
    trace.close()
    assert list(tmp_path.iterdir()) == []
