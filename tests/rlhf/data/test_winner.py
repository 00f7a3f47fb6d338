"""A column that says who won is read as the recipe says, or the run is refused."""

from __future__ import annotations

import pytest

from rlhf.config.schema import DataConfig
from rlhf.data.formats import load_demonstrations, load_preferences, load_prompts
from rlhf.errors import UserError
from tests.rlhf.data.conftest import Write

NUMBERED = {"prompt": "input", "chosen": "output_1", "rejected": "output_2"}


def judged(*labels: object, name: str = "label") -> list[dict[str, object]]:
    return [{"input": f"q{i}", "output_1": "one", "output_2": "two", name: label} for i, label in enumerate(labels)]


def winners(path: str, **options: object) -> list[str]:
    columns = {**NUMBERED, "label": "label"}
    return [str(row.chosen) for row in load_preferences(DataConfig(path=path, columns=columns, **options)).rows]


@pytest.mark.parametrize(
    "name",
    ["label", "winner", "preference", "overall_preference", "better_response_id", "choice", "annotator1", "vote"],
)
@pytest.mark.parametrize("load", [load_preferences, load_demonstrations])
def test_a_column_that_may_say_who_won_is_not_ignored(write_jsonl: Write, name: str, load) -> None:
    config = DataConfig(path=write_jsonl(*judged(1, 2, name=name)), columns=NUMBERED)
    with pytest.raises(UserError, match=rf"rows\.jsonl:1: the column '{name}' may say which") as caught:
        load(config)
    assert f"data.columns.label={name}" in caught.value.fix and f"data.ignore=[{name}]" in caught.value.fix


def test_all_columns_that_may_say_who_won_are_named_at_once(write_jsonl: Write) -> None:
    row = {"input": "q", "output_1": "a", "output_2": "b", "annotator1": 1, "annotator2": 2}
    with pytest.raises(UserError, match=r"'annotator1' may say .* \(so may annotator2\)") as caught:
        load_preferences(DataConfig(path=write_jsonl(row), columns=NUMBERED))
    assert "data.ignore=[annotator1, annotator2]" in caught.value.fix


@pytest.mark.parametrize("labels", [(1, 2), ("A", "B"), ("output_1", "output_2"), ("model_a", "tie")])
def test_numbered_answers_are_judged_by_some_column(write_jsonl: Write, labels: tuple[object, ...]) -> None:
    """The name says nothing here; the values do."""
    rows = write_jsonl(*judged(*labels, name="gpt4"))
    with pytest.raises(UserError, match="the column 'gpt4' may say which"):
        load_preferences(DataConfig(path=rows, columns=NUMBERED))


def test_a_label_beside_chosen_and_rejected_is_asked_about_too(write_jsonl: Write) -> None:
    row = {"prompt": "q", "chosen": "a", "rejected": "b", "label": 1}
    with pytest.raises(UserError, match="the column 'label' may say which"):
        load_preferences(DataConfig(path=write_jsonl(row)))
    assert load_preferences(DataConfig(path=write_jsonl(row), ignore=("label",))).rows[0].chosen == "a"
    assert load_prompts(DataConfig(path=write_jsonl(row))).rows[0].prompt == "q"


@pytest.mark.parametrize(
    "column",
    [
        {"label_explanation": "x" * 50},
        {"annotator_id": 7},
        {"idx": 1, "motivation": "Grammarly"},
        {"preference": None},
    ],
)
def test_other_columns_are_no_labels(write_jsonl: Write, column: dict[str, object]) -> None:
    rows = [{"input": f"q{i}", "output_1": "one", "output_2": "two", **column} for i in range(5)]
    rows = [{**row, "idx": i} for i, row in enumerate(rows)]
    loaded = load_preferences(DataConfig(path=write_jsonl(*rows), columns=NUMBERED))
    assert len(loaded.rows) == 5 and set(column) <= set(loaded.unused)


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        ((1, 2, 0), ["one", "two"]),
        (("1", "2"), ["one", "two"]),
        ((1.0, 2.0), ["one", "two"]),
        (("a", "B", "tie"), ["one", "two"]),
        (("output_1", "output_2"), ["one", "two"]),
        (("chosen", "rejected"), ["one", "two"]),
        (("model_a", "model_b", "tie (bothbad)"), ["one", "two"]),
        (("first", "Second"), ["one", "two"]),
    ],
)
def test_labels_that_can_be_read_in_one_way_only(write_jsonl: Write, labels, expected) -> None:
    assert winners(write_jsonl(*judged(*labels))) == expected


@pytest.mark.parametrize("labels", [(0, 1), (1, 1), (True, False), (-1, 1), ("x", "y"), ("good", 2), ([1], [2])])
def test_labels_that_can_be_read_in_two_ways_are_refused(write_jsonl: Write, labels) -> None:
    with pytest.raises(UserError, match=r"what they say is not certain|not one value"):
        winners(write_jsonl(*judged(*labels)))


def test_the_recipe_says_what_labels_mean(write_jsonl: Write) -> None:
    path = write_jsonl(*judged(0, 1, 0.5, "?"))
    meaning = {"0": "chosen", "1": "rejected", "0.5": "tie"}
    assert winners(path, labels=meaning) == ["one", "two"]
    loaded = load_preferences(DataConfig(path=path, columns={**NUMBERED, "label": "label"}, labels=meaning))
    assert [(bad.source.line, bad.category, bad.is_fault) for bad in loaded.bad] == [
        (3, "tie", False),
        (4, "not a label", True),
    ]


def test_a_tie_is_no_bad_row(write_jsonl: Write) -> None:
    assert winners(write_jsonl(*judged(1, 0, 2)), bad_rows="error") == ["one", "two"]
    with pytest.raises(UserError, match=r"rows\.jsonl:2: no label"):
        winners(write_jsonl(*judged(1, None, 2)), bad_rows="error")


def test_several_columns_are_votes(write_jsonl: Write) -> None:
    votes = [(1, 1, 2), (2, 0, 2), (1, 2, 0), (0, 0, 1), (2, 2, 2)]
    rows = [{"input": "q", "output_1": "one", "output_2": "two", "a": a, "b": b, "c": c} for a, b, c in votes]
    columns = {**NUMBERED, "label": "a, b, c"}
    loaded = load_preferences(DataConfig(path=write_jsonl(*rows), columns=columns))
    assert [str(row.chosen) for row in loaded.rows] == ["one", "two", "two"]
    assert [bad.source.line for bad in loaded.bad] == [3, 4] and loaded.unused == ()


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"labels": {"1": "first"}, "columns": {**NUMBERED, "label": "label"}}, "data.labels says 'first'"),
        ({"labels": {"1": "chosen"}, "columns": NUMBERED}, "no column to read labels from"),
        ({"columns": {**NUMBERED, "prompt": "input, label"}}, "several columns for one"),
    ],
)
def test_settings_that_cannot_be_meant_are_refused(write_jsonl: Write, options, expected) -> None:
    with pytest.raises(UserError, match=expected):
        load_preferences(DataConfig(path=write_jsonl(*judged(1, 2)), **options))
