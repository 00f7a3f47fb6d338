"""Demonstrations that a column marks as bad are quarantined; if almost all rows are bad, the run is refused."""

from __future__ import annotations

import pytest

from rlhf.config.schema import DataConfig
from rlhf.data.formats import load_demonstrations, load_prompts
from rlhf.errors import UserError
from tests.rlhf.data.conftest import Write


def marked(column: str, *values: object) -> list[dict[str, object]]:
    return [{"prompt": f"q{i}", "completion": f" answer {i}", column: value} for i, value in enumerate(values)]


@pytest.mark.parametrize(
    ("column", "good", "bad"),
    [
        ("is_safe", True, False),
        ("isSafe", True, False),
        ("is_response_safe", 1, 0),
        ("desirable", True, False),
        ("thumbs_up", "true", "false"),
        ("correct", 1.0, 0.0),
        ("approved", "Yes", "No"),
        ("thumbs_down", False, True),
        ("is_bad", False, True),
        ("hallucinated", 0, 1),
        ("thumbs", "up", "down"),
        ("feedback", "positive", "negative"),
        ("reaction", "👍", "👎"),
        ("vote", 1, -1),
        ("meta", {"is_safe": True}, {"is_safe": False}),
    ],
)
def test_a_demonstration_that_is_marked_as_bad_is_quarantined(write_jsonl: Write, column, good, bad) -> None:
    path = write_jsonl(*marked(column, good, bad, None))
    loaded = load_demonstrations(DataConfig(path=path))
    assert [row.prompt for row in loaded.rows] == ["q0", "q2"]
    assert [(row.source.line, row.category) for row in loaded.bad] == [(2, "marked as bad")]
    assert len(load_prompts(DataConfig(path=path)).rows) == 3, "a prompt is not worse by its answer"
    mark = "meta.is_safe" if column == "meta" else column
    assert len(load_demonstrations(DataConfig(path=path, ignore=(mark,))).rows) == 3


@pytest.mark.parametrize(
    ("column", "values"),
    [
        ("correct", ("A", "false")),  # the right choice
        ("correct", (0, 1, 2)),
        ("feedback", ("good", "It is too short.")),
        ("is_long", (True, False)),
        ("harmful", (True, False)),  # maybe the prompt
        ("vote", (3, 1)),
    ],
)
def test_other_columns_are_no_marks(write_jsonl: Write, column: str, values: tuple[object, ...]) -> None:
    loaded = load_demonstrations(DataConfig(path=write_jsonl(*marked(column, *values))))
    assert len(loaded.rows) == len(values) and loaded.bad == ()


def test_conversations_are_quarantined_by_their_marks(write_jsonl: Write) -> None:
    turns = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    path = write_jsonl({"messages": turns, "thumbs_up": True}, {"messages": turns, "thumbs_up": False})
    assert [bad.source.line for bad in load_demonstrations(DataConfig(path=path)).bad] == [2]


@pytest.mark.parametrize(
    ("rows", "expected", "fix"),
    [
        (marked("is_safe", *[True] * 2, *[False] * 38), "38 of 40 rows", "data.ignore="),
        (marked("label", *[True] * 1, *[False] * 39), "39 of 40 rows", "data.ignore=[label]"),
        ([*marked("x", 1), *['{"prompt'] * 30], "30 of 31 rows", "one JSON object per line"),
        (marked("is_safe", *[False] * 3), "no usable row", "data.ignore="),
        (['{"prompt'] * 3, "no usable row", "one JSON object per line"),
        ([{"q": "a", "a": "b"}] * 3, "no usable row", "rename columns with data.columns"),
    ],
)
def test_data_of_which_almost_all_rows_are_bad_is_refused(write_jsonl: Write, rows, expected: str, fix: str) -> None:
    with pytest.raises(UserError, match=expected) as caught:
        load_demonstrations(DataConfig(path=write_jsonl(*rows)))
    assert fix in caught.value.fix


@pytest.mark.parametrize(("good", "bad"), [(4, 36), (1, 15)])
def test_other_bad_rows_are_counted(write_jsonl: Write, good: int, bad: int) -> None:
    loaded = load_demonstrations(DataConfig(path=write_jsonl(*marked("is_safe", *[True] * good, *[False] * bad))))
    assert (len(loaded.rows), len(loaded.bad)) == (good, bad)
