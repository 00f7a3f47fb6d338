"""A column that names the winner is read according to the recipe, or the run is refused."""

from __future__ import annotations

from dataclasses import replace

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
def test_a_possible_winner_column_is_not_ignored(write_jsonl: Write, name: str, load) -> None:
    config = DataConfig(path=write_jsonl(*judged(1, 2, name=name)), columns=NUMBERED)
    with pytest.raises(UserError, match=rf"rows\.jsonl:1: the column '{name}' may say which") as caught:
        load(config)
    assert f"data.columns.label={name}" in caught.value.fix and f"data.ignore=[{name}]" in caught.value.fix


def test_all_possible_winner_columns_are_named_at_once(write_jsonl: Write) -> None:
    row = {"input": "q", "output_1": "a", "output_2": "b", "annotator1": 1, "annotator2": 2}
    with pytest.raises(UserError, match=r"'annotator1' may say .* \(so may annotator2\)") as caught:
        load_preferences(DataConfig(path=write_jsonl(row), columns=NUMBERED))
    assert "data.ignore=[annotator1, annotator2]" in caught.value.fix


@pytest.mark.parametrize(
    "labels",
    [
        *((1, 2), ("A", "B"), ("output_1", "output_2"), ("model_a", "tie")),
        *(("a", None, "b"), (1, 2, "null"), (2, float("nan"), 1), ("a", "none"), ("A", "B", "neither"), (1, 2, "n/a")),
    ],
)
def test_numbered_answers_are_judged_by_some_column(write_jsonl: Write, labels: tuple[object, ...]) -> None:
    """The column's name has no meaning here, but its values do."""
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
        {"meta": {"note": "a"}},
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
    with pytest.raises(UserError, match=r"their meaning is ambiguous|not one value"):
        winners(write_jsonl(*judged(*labels)))


def test_the_recipe_defines_the_meaning_of_labels(write_jsonl: Write) -> None:
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
        ({"labels": {"1": "first"}, "columns": {**NUMBERED, "label": "label"}}, "data.labels has the meaning 'first'"),
        ({"labels": {"1": "chosen"}, "columns": NUMBERED}, "no column to read labels from"),
        ({"columns": {**NUMBERED, "prompt": "input, label"}}, "several columns for one"),
    ],
)
def test_settings_that_cannot_be_meant_are_refused(write_jsonl: Write, options, expected) -> None:
    with pytest.raises(UserError, match=expected):
        load_preferences(DataConfig(path=write_jsonl(*judged(1, 2)), **options))


def compared(path: str, names: tuple[str, str], **options: object) -> list[str]:
    columns = {"prompt": "q", "chosen": names[0], "rejected": names[1], "label": "w"}
    return [str(row.chosen) for row in load_preferences(DataConfig(path=path, columns=columns, **options)).rows]


def named(names: tuple[str, str], *labels: object) -> list[dict[str, object]]:
    """Rows whose answers are the names of their columns."""
    return [{"q": f"q{i}", names[0]: names[0], names[1]: names[1], "w": label} for i, label in enumerate(labels)]


@pytest.mark.parametrize(
    ("names", "labels", "expected"),
    [
        (("response_0", "response_1"), (0, 1), ["response_0", "response_1"]),
        (("response_0", "response_1"), ("0", "1", "tie"), ["response_0", "response_1"]),
        (("response_0", "response_1"), ("response_0", "response_1"), ["response_0", "response_1"]),
        (("response_0", "response_1"), ("model_0", "model_1"), ["response_0", "response_1"]),
        (("response_0", "response_1"), ("a", "b"), ["response_0", "response_1"]),
        (("response_1", "response_0"), (0, 1, 1), ["response_0", "response_1", "response_1"]),
        (("answer0", "answer1"), (1.0, 0.0), ["answer1", "answer0"]),
        (("output_2", "output_1"), (1, 2, 0), ["output_1", "output_2"]),
        (("output_2", "output_1"), ("a", "second"), ["output_1", "output_2"]),
        (("output_2", "output_1"), ("output_1", "output_2"), ["output_1", "output_2"]),
        (("output_2", "output_1"), ("model_1", "model_2"), ["output_1", "output_2"]),
        (("model_b", "model_a"), ("a", "b"), ["model_a", "model_b"]),
        (("model_b", "model_a"), (1, 2), ["model_a", "model_b"]),
        (("responseB", "responseA"), ("A", "B"), ["responseA", "responseB"]),
        (("right_text", "left_text"), ("left", "right"), ["left_text", "right_text"]),
        (("answer_2", "answer_3"), (2, 3), ["answer_2", "answer_3"]),
        (("answer", "answer2"), (1, 2), ["answer", "answer2"]),
        (("gpt_text", "claude_text"), ("claude", "gpt", "tie"), ["claude_text", "gpt_text"]),
        (("good", "bad"), (1, 2), ["good", "bad"]),
        (("model_a", "model_b"), ("model_a", "neither", "none", "model_b"), ["model_a", "model_b"]),
    ],
)
def test_a_label_is_the_column_of_its_own_name_or_number(write_jsonl: Write, names, labels, expected) -> None:
    assert compared(write_jsonl(*named(names, *labels)), names) == expected


@pytest.mark.parametrize(
    ("names", "labels"),
    [
        (("response_0", "response_1"), (1, 2)),
        (("response_0", "response_1"), (0, 1, 2)),
        (("response_0", "response_1"), (1, 1)),
        (("response_0", "response_1"), (0, 0)),
        (("output_1", "output_2"), ("model_0", "model_1")),
        (("output_1", "output_2"), ("model_0", "model_1", "model_2")),
        (("output_2", "output_1"), (0, 1)),
        (("answer_2", "answer_3"), (1, 2)),
        (("good", "bad"), ("model_0", "model_1")),
        (("good", "bad"), (1, 2, 0)),
        (("model_a", "model_b"), (0, 1, 2)),
        (("first", "second"), (0, 1, 2)),
    ],
)
def test_numbers_that_count_otherwise_than_the_columns_are_refused(write_jsonl: Write, names, labels) -> None:
    path = write_jsonl(*named(names, *labels))
    with pytest.raises(UserError, match="their meaning is ambiguous"):
        compared(path, names)
    assert len(compared(path, names, labels={str(label): "chosen" for label in labels})) == len(labels)


@pytest.mark.parametrize(
    ("labels", "expected"), [((0, 1), ["a", "b"]), ((1, 2, 1), ["a", "b", "a"]), ((0, 1, 2), None)]
)
def test_items_of_a_list_are_counted_as_their_labels_count_them(write_jsonl: Write, labels, expected) -> None:
    path = write_jsonl(*[{"q": "q", "d": ["a", "b"], "w": label} for label in labels])
    if expected:
        assert compared(path, ("d.0", "d.1")) == expected
    else:
        with pytest.raises(UserError, match="their meaning is ambiguous"):
            compared(path, ("d.0", "d.1"))


@pytest.mark.parametrize(
    ("row", "columns", "found"),
    [
        ({"d": {"a": "x", "b": "y", "winner": 2}}, ("d.a", "d.b"), "d.winner"),
        ({"d": {"a": "x", "b": "y"}, "meta": {"winner": "b"}}, ("d.a", "d.b"), "meta.winner"),
        ({"d": [{"text": "x"}, {"text": "y", "preferred": True}]}, ("d.0.text", "d.1.text"), "d.1.preferred"),
        ({"votes": {"a": "x", "b": "y", "by": [1, 2]}}, ("votes.a", "votes.b"), "votes.by"),
        ({"chosen": "x", "rejected": "y", "meta": {"label": {"value": 1}}}, ("chosen", "rejected"), "meta.label"),
    ],
)
def test_a_winner_inside_of_a_column_is_not_ignored(write_jsonl: Write, row, columns, found: str) -> None:
    names = {"prompt": "q", "chosen": columns[0], "rejected": columns[1]}
    path = write_jsonl({"q": "q", **row})
    with pytest.raises(UserError, match=rf"the column '{found}' may say which") as caught:
        load_preferences(DataConfig(path=path, columns=names))
    assert f"data.ignore=[{found}]" in caught.value.fix
    for ignored in (found, found.rpartition(".")[0]):
        if not columns[0].startswith(f"{ignored}."):
            loaded = load_preferences(DataConfig(path=path, columns=names, ignore=(ignored,)))
            assert [str(pair.chosen) for pair in loaded.rows] == ["x"] and found not in loaded.unused


@pytest.mark.parametrize("values", [(0, 1), (1, 2), ("a", "b"), ("first", "second")])
@pytest.mark.parametrize("place", ["beside", "inside"])
def test_values_beside_numbered_items_may_be_labels(write_jsonl: Write, values, place: str) -> None:
    rows = [
        {"q": "q", "responses": ["x", "y"], "top": value}
        if place == "beside"
        else {"q": "q", "responses": {"0": "x", "1": "y", "top": value}}
        for value in values
    ]
    columns = {"prompt": "q", "chosen": "responses.0", "rejected": "responses.1"}
    found = "top" if place == "beside" else "responses.top"
    with pytest.raises(UserError, match=f"the column '{found}' may say which"):
        load_preferences(DataConfig(path=write_jsonl(*rows), columns=columns))
    assert len(load_preferences(DataConfig(path=write_jsonl(*rows), columns=columns, ignore=(found,))).rows) == 2


def test_values_that_name_the_answers_may_be_labels(write_jsonl: Write) -> None:
    rows = [{"q": "q", "gpt_text": "x", "claude_text": "y", "top": value} for value in ("gpt", "claude")]
    columns = {"prompt": "q", "chosen": "gpt_text", "rejected": "claude_text"}
    with pytest.raises(UserError, match="the column 'top' may say which"):
        load_preferences(DataConfig(path=write_jsonl(*rows), columns=columns))


@pytest.mark.parametrize(
    ("keys", "labels"),
    [
        ({"1": "chosen", "0": "rejected"}, (1, 0)),
        ({"1.0": "chosen", "0.0": "rejected"}, (1, 0)),
        ({"1": "chosen", "0": "rejected"}, ("1.0", 0.0)),
        ({"True": "chosen", "false": "rejected"}, (True, "FALSE")),
        ({"0.50": "chosen", "-1": "rejected"}, (0.5, -1.0)),
        ({"1": "chosen", "0": "rejected"}, (True, False)),
        ({"true": "chosen", "false": "rejected"}, (1, 0)),
    ],
)
def test_a_label_is_its_key_however_its_number_is_written(write_jsonl: Write, keys, labels) -> None:
    assert winners(write_jsonl(*judged(*labels)), labels=keys) == ["one", "two"]


def test_true_is_no_label_where_1_and_2_are(write_jsonl: Write) -> None:
    path = write_jsonl(*judged(1, True, 2))
    columns, labels = {**NUMBERED, "label": "label"}, {"1": "chosen", "2": "rejected"}
    loaded = load_preferences(DataConfig(path=path, columns=columns, labels=labels))
    assert [str(row.chosen) for row in loaded.rows] == ["one", "two"]
    assert [(bad.source.line, bad.category) for bad in loaded.bad] == [(2, "not a label")]


def test_two_keys_of_one_label_mean_the_same(write_jsonl: Write) -> None:
    path = write_jsonl(*judged(1, 2))
    with pytest.raises(UserError, match="data.labels gives '1' two meanings"):
        winners(path, labels={"1": "chosen", "1.0": "rejected", "2": "rejected"})


@pytest.mark.parametrize(
    ("labels", "example"),
    [
        ((1, 1), '{"1": chosen, "2": rejected}'),
        ((0, 0), '{"0": chosen, "1": rejected}'),
        ((True, True), '{"true": chosen, "false": rejected}'),
        (("x", "y"), '{"x": chosen, "y": rejected}'),
        ((0, 1, 3), '{"0": chosen, "1": rejected, "3": tie}'),
    ],
)
def test_the_advice_names_every_label_once(write_jsonl: Write, labels, example: str) -> None:
    with pytest.raises(UserError, match="their meaning is ambiguous") as caught:
        winners(write_jsonl(*judged(*labels)))
    assert f"data.labels='{example}'" in caught.value.fix


def outcomes(*rows: tuple[object, ...], names: tuple[str, ...] = ("a", "b", "tie")) -> list[dict[str, object]]:
    """LMSYS's rows: one column per outcome, of which one is 1."""
    return [
        {"prompt": "q", "response_a": "one", "response_b": "two"}
        | {f"winner_{name}": value for name, value in zip(names, row, strict=True)}
        for row in rows
    ]


AB = {"prompt": "prompt", "chosen": "response_a", "rejected": "response_b"}
BA = {"prompt": "prompt", "chosen": "response_b", "rejected": "response_a"}
ALL = "winner_a, winner_b, winner_tie"


@pytest.mark.parametrize("columns", [AB, BA])
@pytest.mark.parametrize(("yes", "no"), [(1, 0), (True, False), ("1", "0"), (1.0, 0.0)])
def test_one_column_per_outcome_gives_the_winner(write_jsonl: Write, columns, yes, no) -> None:
    path = write_jsonl(*outcomes((no, yes, no), (yes, no, no), (no, no, yes), (no, no, None), (no, yes, no)))
    loaded = load_preferences(DataConfig(path=path, columns={**columns, "label": ALL}))
    assert [str(row.chosen) for row in loaded.rows] == ["two", "one", "two"]
    assert [(bad.source.line, bad.reason) for bad in loaded.bad] == [(3, "tie"), (4, "no label")]


def test_two_columns_of_outcomes_of_which_none_is_true_are_a_tie(write_jsonl: Write) -> None:
    path = write_jsonl(*outcomes((0, 1), (0, 0), (1, 0), names=("model_a", "model_b")))
    loaded = load_preferences(DataConfig(path=path, columns={**AB, "label": "winner_model_a, winner_model_b"}))
    assert [str(row.chosen) for row in loaded.rows] == ["two", "one"]
    assert [(bad.source.line, bad.reason) for bad in loaded.bad] == [(2, "tie")]


def test_columns_of_which_two_are_true_are_votes(write_jsonl: Write) -> None:
    path = write_jsonl(*outcomes((1, 1, 0), (0, 0, 1)))
    columns = {**AB, "label": ALL}
    with pytest.raises(UserError, match="their meaning is ambiguous"):
        load_preferences(DataConfig(path=path, columns=columns))
    votes = load_preferences(DataConfig(path=path, columns=columns, labels={"1": "chosen", "0": "rejected"}))
    assert [str(row.chosen) for row in votes.rows] == ["one", "two"]


def test_the_columns_of_two_judges_are_votes(write_jsonl: Write) -> None:
    rows = [{"q": "q", "r_0": "one", "r_1": "two", "annotator_0": a, "annotator_1": b} for a, b in [(0, 1), (1, 0)]]
    columns = {"prompt": "q", "chosen": "r_0", "rejected": "r_1", "label": "annotator_0, annotator_1"}
    with pytest.raises(UserError, match="2 comparisons are ties"):
        load_preferences(DataConfig(path=write_jsonl(*rows), columns=columns))


@pytest.mark.parametrize("labels", [{}, {"1": "chosen", "0": "rejected"}])
def test_one_column_of_several_outcomes_is_not_read_alone(write_jsonl: Write, labels: dict[str, str]) -> None:
    """A tie would be read as the other answer's win."""
    columns = {**AB, "label": "winner_a"}
    path = write_jsonl(*outcomes((1, 0, 0), (0, 1, 0), (0, 0, 1)))
    with pytest.raises(UserError, match="winner_a is one of winner_a, winner_b, winner_tie, of which") as caught:
        load_preferences(DataConfig(path=path, columns=columns, labels=labels))
    assert f"data.columns.label='{ALL}'" in caught.value.fix
    assert "data.ignore=[winner_b, winner_tie]" in caught.value.fix
    with pytest.raises(UserError, match="data.labels is given beside winner_a, winner_b, winner_tie"):
        load_preferences(DataConfig(path=path, columns={**AB, "label": ALL}, labels={"1": "chosen"}))


def test_one_of_two_outcome_columns_suffices_if_it_is_true(write_jsonl: Write) -> None:
    columns, labels = {**AB, "label": "winner_a"}, {"1": "chosen", "0": "rejected"}
    whole, tied = outcomes((1, 0), (0, 1), names=("a", "b")), outcomes((1, 0), (0, 0), names=("a", "b"))
    loaded = load_preferences(DataConfig(path=write_jsonl(*whole), columns=columns, labels=labels))
    assert [str(row.chosen) for row in loaded.rows] == ["one", "two"]
    with pytest.raises(UserError, match="winner_a is one of winner_a, winner_b"):
        load_preferences(DataConfig(path=write_jsonl(*tied), columns=columns, labels=labels))


def test_columns_of_outcomes_that_are_not_read_are_named_together(write_jsonl: Write) -> None:
    with pytest.raises(UserError, match="the column 'winner_a' may say which") as caught:
        load_preferences(DataConfig(path=write_jsonl(*outcomes((1, 0, 0), (0, 0, 1))), columns=AB))
    assert f"data.columns.label='{ALL}'" in caught.value.fix


def comparisons(column: str, *values: object) -> list[dict[str, object]]:
    return [{"q": f"q{i}", "answer_a": "one", "answer_b": "two", column: value} for i, value in enumerate(values)]


COUNTED = {"prompt": "q", "chosen": "answer_a", "rejected": "answer_b"}


@pytest.mark.parametrize(
    ("column", "values"),
    [
        ("overall_pref", (1.5, 2.5)),
        ("pref", ("strong", "weak")),
        ("ranking", ("A>B", "B>A")),
        ("ranking", (4, 7)),
        ("p_a_wins", (0.9, 0.2)),
        ("p", (0.9, 0.2)),
        ("elo_diff", (120, 30)),
        ("gap", (120.5, -30)),
        ("swap", (True, False)),
        ("flipped", (1, 1)),
        ("is_first", (True, False)),
        ("ok", ("yes", "no")),
        ("output", ("1\n\n### Reason: it is short", "2\n\n### Reason: it is right")),
        ("output", ("Output (a)", "Output (b)")),
        ("says", ("[[A]]", "[[B]]")),
        ("says", ("A is better, as it is short.", "B is better, as it is right.", "Tie")),
        ("m", ({"delta": 3}, {"delta": 4})),
    ],
)
def test_a_column_of_any_name_beside_counted_answers_may_name_the_winner(
    write_jsonl: Write, column: str, values: tuple[object, ...]
) -> None:
    path = write_jsonl(*comparisons(column, *values))
    found = "m.delta" if column == "m" else column
    with pytest.raises(UserError, match=f"the column '{found}' may say which of the two answers won") as caught:
        load_preferences(DataConfig(path=path, columns=COUNTED))
    assert f"data.columns.label={found}" in caught.value.fix and f"data.ignore=[{found}]" in caught.value.fix
    loaded = load_preferences(DataConfig(path=path, columns=COUNTED, ignore=(found,)))
    assert len(loaded.rows) == len(values)


@pytest.mark.parametrize(
    ("column", "values"),
    [
        ("source", ("wiki", "books")),
        ("length", (120, 340)),
        ("date", ("2024-01-02", "2024-03-04")),
        ("comment", ("The first one is too long.", "Both are short.")),
        ("rank_id", (12, 31)),
        ("difficulty", (3, 5)),
        ("is_english", (True, True)),
    ],
)
def test_other_columns_beside_counted_answers_are_no_labels(write_jsonl: Write, column: str, values) -> None:
    loaded = load_preferences(DataConfig(path=write_jsonl(*comparisons(column, *values)), columns=COUNTED))
    assert len(loaded.rows) == 2 and loaded.unused == (column,)
    remark = "answer_a is trained on as better than answer_b in every row: no column that names the winner is read"
    assert loaded.remarks == (remark,)


def test_a_column_for_each_answer_is_no_label(write_jsonl: Write) -> None:
    rows = [{**row, "is_long_a": i > 0, "is_long_b": i == 0} for i, row in enumerate(comparisons("source", "x", "y"))]
    assert len(load_preferences(DataConfig(path=write_jsonl(*rows), columns=COUNTED)).rows) == 2


def test_names_that_say_which_answer_is_better_need_no_label(write_jsonl: Write) -> None:
    rows = [{"q": "q", "better": "one", "worse": "two", "elo_diff": value, "rank": 1} for value in (10, -3)]
    columns = {"prompt": "q", "chosen": "better", "rejected": "worse"}
    loaded = load_preferences(DataConfig(path=write_jsonl(*rows), columns=columns))
    assert len(loaded.rows) == 2 and loaded.remarks == ()


@pytest.mark.parametrize(
    ("column", "values", "is_refused"),
    [
        ("swap", (True, False), True),
        ("is_flipped", (1, 0), True),
        ("reversed", ("yes", "no"), True),
        ("order", ("ab", "ba"), True),
        ("swap", (False, False), False),
        ("swap_reason", (None, None), False),
        ("order", (1, 2), False),
        ("source", ("wiki", "books"), False),
    ],
)
def test_a_column_of_exchanged_answers_beside_a_label_is_not_ignored(
    write_jsonl: Write, column: str, values, is_refused: bool
) -> None:
    rows = [{**row, "winner": label} for row, label in zip(comparisons(column, *values), ("a", "b"), strict=True)]
    config = DataConfig(path=write_jsonl(*rows), columns={**COUNTED, "label": "winner"})
    if is_refused:
        with pytest.raises(UserError, match=f"the column '{column}' may say that the two answers were exchanged"):
            load_preferences(config)
        config = replace(config, ignore=(column,))
    assert [str(row.chosen) for row in load_preferences(config).rows] == ["one", "two"]


@pytest.mark.parametrize(
    ("labels", "advice"),
    [
        ((-3, -1, 0, 2, 3), '{"-3": chosen, "-1": chosen, "0": tie, "2": rejected, "3": rejected}'),
        ((-1, 0, 1), '{"-1": chosen, "0": tie, "1": rejected}'),
        ((-1, 1), '{"-1": chosen, "1": rejected}'),
        ((3, 4, 5, 6, 7), '{"3": chosen, "4": chosen, "5": tie, "6": rejected, "7": rejected}'),
        (("w", "x", "y", "z"), '{"w": chosen, "x": rejected, "y": tie}'),
        (tuple(i / 30 for i in range(30)), "write a column of the winner to the file"),
    ],
)
def test_the_advice_fits_a_scale(write_jsonl: Write, labels, advice: str) -> None:
    with pytest.raises(UserError, match="their meaning is ambiguous") as caught:
        winners(write_jsonl(*judged(*labels)))
    assert advice in caught.value.fix
