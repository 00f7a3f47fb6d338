"""Columns that are read, mapped by standard names, found by a path, or reported as not read."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import datasets
import pyarrow
import pyarrow.parquet
import pytest

from rlhf.config.schema import DataConfig
from rlhf.data.formats import load_demonstrations, load_preferences, load_prompts
from rlhf.data.report import describe
from rlhf.errors import UserError
from rlhf.records import Message, text_of
from tests.rlhf.data.conftest import Write

USER, BLUE = {"role": "user", "content": "Sky?"}, {"role": "assistant", "content": "Blue."}
M_USER, M_SYSTEM = Message("user", "Sky?"), Message("system", "Be brief.")


def shown(path: str, **options: object) -> list[tuple[object, str]]:
    return [(row.prompt, text_of(row.completion)) for row in load_demonstrations(DataConfig(path=path, **options)).rows]


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"instruction": "Say it", "input": "", "output": "it"}, ("Say it", "it")),
        ({"instruction": "Say it", "input": "x", "output": "x"}, ("Say it\n\nx", "x")),
        ({"input": "Sky?", "output": "Blue."}, ("Sky?", "Blue.")),
        ({"instruction": "Who?", "context": "Bob did.", "response": "Bob"}, ("Who?\n\nBob did.", "Bob")),
        ({"instruction": "Who?", "context": "", "response": "Bob"}, ("Who?", "Bob")),
        ({"question": "Who?", "context": "Bob did.", "response": "Bob"}, ("Who?", "Bob")),
        ({"question": "Sky?", "answer": "Blue."}, ("Sky?", "Blue.")),
        ({"prompt": "Sky?", "response": "Blue.", "id": 3}, ("Sky?", "Blue.")),
        ({"system_prompt": "Be brief.", "question": "Sky?", "response": "Blue."}, ("Be brief.\n\nSky?", "Blue.")),
        ({"system": None, "prompt": "Sky?", "completion": "Blue."}, ("Sky?", "Blue.")),
        ({"system": "Be brief.", "prompt": "Sky?", "completion": "Blue."}, ("Be brief.\n\nSky?", "Blue.")),
        ({"system": "Be brief.", "messages": [USER, BLUE]}, ((M_SYSTEM, M_USER), "Blue.")),
        ({"system": "Be brief.", "prompt": [USER], "completion": [BLUE]}, ((M_SYSTEM, M_USER), "Blue.")),
        ({"system": "Be brief.", "chosen": [USER, BLUE], "rejected": [USER, USER, BLUE]}, None),
        (
            {"question": "title", "chosen": [USER, BLUE], "rejected": [USER, {**BLUE, "content": "Red."}]},
            ((M_USER,), "Blue."),
        ),
        ({"question": "a", "instruction": "b", "answer": "c"}, None),  # which of the two, nobody can tell
        ({"text": "whole", "question": "a", "answer": "c"}, ("a", "c")),
        ({"text": "whole", "instruction": "a", "input": "b", "output": "c"}, ("a\n\nb", "c")),  # Alpaca's own files
        ({"text": "whole", "prompt": "a", "completion": "c"}, ("a", "c")),
        ({"text": "whole", "answer": "c"}, ("", "whole")),
        ({"text": "whole", "question": "a", "chosen": "b", "rejected": "c"}, ("a", "b")),
        ({"text": "whole", "chosen": "The sky is blue", "rejected": "The sky is red"}, None),  # a prompt, or what else?
        ({"text": "whole", "system": "Be brief."}, None),
        ({"conversations": [USER, BLUE], "question": "title", "answer": "c"}, ((M_USER,), "Blue.")),
        (
            {"system": "Be brief.", "chosen": "The sky is blue", "rejected": "The sky is red"},
            ("Be brief.\n\nThe sky is", " blue"),
        ),
    ],
)
def test_columns_with_a_standard_meaning(write_jsonl: Write, row: dict[str, object], expected: object) -> None:
    path = write_jsonl({"prompt": "other", "completion": "row"}, row)
    assert shown(path)[1:] == ([] if expected is None else [expected])


def test_text_beside_a_prompt_and_its_answer_is_named_as_not_read(write_jsonl: Write) -> None:
    path = write_jsonl({"instruction": "a", "input": "", "output": "c", "text": "a c"})
    assert load_demonstrations(DataConfig(path=path)).unused == ("text",)
    assert [row.prompt for row in load_prompts(DataConfig(path=path)).rows] == ["a"]
    assert shown(path, columns={"text": "text"}) == [("", "a c")]  # the recipe wins


@pytest.mark.parametrize("name", ["messages", "conversations"])
def test_what_the_recipe_maps_wins_over_a_conversation(write_jsonl: Write, name: str) -> None:
    path = write_jsonl({"title": "Sea?", "body": "Wide.", name: [USER, BLUE, {**USER, "content": "Sure?"}]})
    assert shown(path, columns={"prompt": f"{name}.0.content", "completion": f"{name}.1.content"}) == [
        ("Sky?", "Blue.")
    ]
    assert shown(path, columns={"text": "body"}) == [("", "Wide.")]
    [asked] = load_prompts(DataConfig(path=path, columns={"prompt": "title"})).rows
    assert asked.prompt == "Sea?"
    assert shown(path, columns={"messages": name}) == [((M_USER,), "Blue.")]


def test_a_system_turn_stands_before_the_prompt_in_every_stage(write_jsonl: Write) -> None:
    path = write_jsonl(
        {"system": "Be brief.", "prompt": [USER], "chosen": [BLUE], "rejected": [{**BLUE, "content": "?"}]}
    )
    config = DataConfig(path=path)
    for load in (load_demonstrations, load_preferences, load_prompts):
        assert load(config).rows[0].prompt == (M_SYSTEM, M_USER)


def test_two_system_turns_are_one_or_a_bad_row(write_jsonl: Write) -> None:
    turns = [{"role": "system", "content": "Be brief."}, USER, BLUE]
    path = write_jsonl({"system": "Be brief. ", "messages": turns}, {"system": "Be long.", "messages": turns})
    loaded = load_demonstrations(DataConfig(path=path))
    assert [row.prompt for row in loaded.rows] == [(M_SYSTEM, M_USER)]
    assert loaded.bad[0].category == "two system turns"


def test_alpacas_input_is_read_under_a_renamed_instruction_too(write_jsonl: Write) -> None:
    path = write_jsonl({"instruction": "Say it", "input": "x", "output": "x"})
    assert shown(path, columns={"prompt": "instruction", "completion": "output"}) == [("Say it\n\nx", "x")]
    assert shown(path, columns={"prompt": "instruction"}, ignore=("input",)) == [("Say it", "x")]
    path = write_jsonl({"prompt": "Say it", "input": "x", "completion": "x"})
    assert shown(path) == [("Say it", "x")]
    assert shown(path, columns={"input": "input"}) == [("Say it\n\nx", "x")]


NESTED = {"prompt": {"text": "Sky?"}, "outputs": [{"text": "Blue."}, {"text": "Red."}], "best": {"of": {"two": 2}}}
PATHS = {"prompt": "prompt.text", "chosen": "outputs.0.text", "rejected": "outputs.1.text", "label": "best.of.two"}


@pytest.mark.parametrize("kind", ["jsonl", "json", "parquet", "datasets"])
def test_a_dotted_path_leads_into_nested_columns_of_every_format(tmp_path: Path, write_jsonl: Write, kind: str) -> None:
    path = tmp_path / f"rows.{kind}"
    if kind == "parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist([NESTED]), path)
    elif kind == "datasets":
        datasets.Dataset.from_list([NESTED]).save_to_disk(path)
    else:
        write_jsonl(NESTED if kind == "jsonl" else [NESTED], name=path.name)
    loaded = load_preferences(DataConfig(path=str(path), columns=PATHS))
    assert [(row.prompt, row.chosen, row.rejected) for row in loaded.rows] == [("Sky?", "Red.", "Blue.")]
    assert loaded.unused == ()


def test_a_path_that_leads_nowhere_is_named(write_jsonl: Write) -> None:
    path = write_jsonl(NESTED, {**NESTED, "outputs": [{"text": "Blue."}]})
    loaded = load_preferences(DataConfig(path=path, columns=PATHS))
    assert [bad.reason for bad in loaded.bad] == [
        "no column 'outputs.1.text': data.columns names it, the row has prompt, outputs, best"
    ]


def test_a_column_whose_name_has_a_dot_is_itself(write_jsonl: Write) -> None:
    path = write_jsonl({"a.b": "Sky?", "a": {"b": "no"}, "c": "Blue."})
    assert shown(path, columns={"prompt": "a.b", "completion": "c"}) == [("Sky?", "Blue.")]


def test_columns_that_nothing_reads_are_named_once(write_jsonl: Write) -> None:
    rows = [{"prompt": "a", "completion": "b", "id": i, **({"topic": "x"} if i > 1 else {})} for i in range(4)]
    loaded = load_demonstrations(DataConfig(path=write_jsonl(*rows)))
    assert loaded.unused == ("id", "topic")
    assert describe(loaded, "demonstrations").splitlines()[1:] == [
        "  not read: id, topic (data.columns maps a column to a name that is read, data.ignore silences this)"
    ]
    loaded = load_demonstrations(DataConfig(path=write_jsonl(*rows), ignore=("id", "topic")))
    assert describe(loaded, "demonstrations") == "demonstrations: 4 rows"


def test_what_is_not_read_of_a_nested_column_is_named_by_its_path(write_jsonl: Write) -> None:
    row = {"d": {"ask": "a", "say": "b", "rating": {"mean": 3}}, "id": 1}
    config = DataConfig(path=write_jsonl(row), columns={"prompt": "d.ask", "completion": "d.say"})
    assert load_demonstrations(config).unused == ("d.rating.mean", "id")
    assert load_demonstrations(replace(config, ignore=("d.rating", "id"))).unused == ()


def test_the_own_column_of_a_name_that_is_taken_is_not_read(write_jsonl: Write) -> None:
    path = write_jsonl({"prompt": "not this", "question": "Sky?", "completion": "Blue."})
    loaded = load_demonstrations(DataConfig(path=path, columns={"prompt": "question"}))
    assert (loaded.rows[0].prompt, loaded.unused) == ("Sky?", ("prompt",))


def test_a_prompts_row_is_whole_for_rewards(write_jsonl: Write) -> None:
    """Under the file's names, whatever was mapped."""
    row = {"question": "Sky?", "answer": "Blue.", "meta": {"a": 1}, "system": "Be brief."}
    [read] = load_prompts(DataConfig(path=write_jsonl(row))).rows
    assert read.prompt == "Be brief.\n\nSky?"
    assert read.columns == {"answer": "Blue.", "meta": {"a": 1}, "system": "Be brief."}


@pytest.mark.parametrize(
    ("chosen", "rejected", "prompt"),
    [
        ("空は青い", "空は赤い", "空は"),
        ("空は何色ですか。青です。", "空は何色ですか。赤です。", "空は何色ですか。"),
        ("天空是蓝色的", "天空是红色的", "天空是"),
        ("ท้องฟ้าสีฟ้า", "ท้องฟ้าสีแดง", "ท้องฟ้าสี"),
        ("空は青", "空は青い", "空は"),  # one begins the other: its last character is still an answer
        ("空はblue", "空はblack", "空は"),
        ("하늘은 파란색", "하늘은 파랑", "하늘은"),  # Korean has spaces
        ("The sky is blue.", "The sky is black.", "The sky is"),
        ("ka\u0301 x", "ka\u0300 x", None),  # the accent belongs to the letter: nothing is shared
        ("空が\u3099い", "空がい", "空"),  # a mark of its own that joins the character before it
        ("色👍🏽", "色👍🏿", "色"),  # not between an emoji and its tone
        ("家👨‍👩‍👧", "家👨‍👩‍👦", "家"),
        ("旗🇯🇵", "旗🇯🇲", "旗"),
    ],
)
def test_answers_part_between_characters_where_no_spaces_do(write_jsonl: Write, chosen, rejected, prompt) -> None:
    loaded = load_preferences(
        DataConfig(
            path=write_jsonl({"prompt": "a", "chosen": "b", "rejected": "c"}, {"chosen": chosen, "rejected": rejected})
        )
    )
    found = [(row.prompt, f"{row.prompt}{row.chosen}", f"{row.prompt}{row.rejected}") for row in loaded.rows[1:]]
    assert found == ([] if prompt is None else [(prompt, chosen, rejected)])
    assert [bad.category for bad in loaded.bad] == (["empty prompt"] if prompt is None else [])


@pytest.mark.parametrize("load", [load_demonstrations, load_prompts])
def test_a_turn_of_a_tree_is_no_text(write_jsonl: Write, load) -> None:
    row = {"message_id": "1", "parent_id": None, "text": "How?", "role": "prompter"}
    with pytest.raises(UserError, match="one turn of a tree"):
        load(DataConfig(path=write_jsonl(row)))
    assert shown(write_jsonl(row), ignore=("parent_id",)) == [("", "How?")]
