"""Turns keep every field, contain a prompt once, and refuse content that is no text."""

from __future__ import annotations

import json
from pathlib import Path

import datasets
import pyarrow
import pyarrow.parquet
import pytest

from rlhf.config.schema import DataConfig
from rlhf.data.formats import load_demonstrations, load_preferences, load_prompts
from rlhf.records import Demonstration, Message, Preference
from tests.rlhf.data.conftest import Write

USER = {"role": "user", "content": "Weather in Bresk?"}
CALL = {"type": "function", "function": {"name": "weather", "arguments": {"city": "Bresk", "day": None}}}
CALLS = {"role": "assistant", "content": "", "tool_calls": [CALL]}
RESULT = {"role": "tool", "name": "weather", "content": "rain"}
ANSWER = {"role": "assistant", "content": "It rains.", "reasoning_content": "The tool says rain."}
TOOLS = [
    {"type": "function", "function": {"name": "weather", "parameters": {"properties": {"city": {"type": "string"}}}}}
]
M_USER, M_CALLS = Message("user", "Weather in Bresk?"), Message("assistant", "", {"tool_calls": [CALL]})


def one_demonstration(path: str) -> Demonstration:
    [row] = load_demonstrations(DataConfig(path=path)).rows
    return row


def one_preference(path: str) -> Preference:
    [row] = load_preferences(DataConfig(path=path)).rows
    return row


def reason(write_jsonl: Write, row: object, load=load_demonstrations) -> str:
    good = {"prompt": "a", "completion": "b", "chosen": "b", "rejected": "c"}
    [bad] = load(DataConfig(path=write_jsonl(good, row))).bad
    return bad.reason


def test_every_field_of_a_turn_and_of_the_row_is_kept(write_jsonl: Write) -> None:
    kwargs = {"enable_thinking": False}
    row = {"messages": [USER, CALLS, RESULT, ANSWER], "tools": TOOLS, "chat_template_kwargs": kwargs}
    read = one_demonstration(write_jsonl(row))
    assert read.prompt == (M_USER, M_CALLS, Message("tool", "rain", {"name": "weather"}))
    assert read.completion == Message("assistant", "It rains.", {"reasoning_content": "The tool says rain."})
    assert read.variables == {"tools": TOOLS, "enable_thinking": False}
    asked = {"prompt": [USER, CALLS, RESULT], "tools": TOOLS}
    [prompt] = load_prompts(DataConfig(path=write_jsonl(asked))).rows
    assert (prompt.prompt, prompt.variables) == (read.prompt, {"tools": TOOLS})


@pytest.mark.parametrize("content", ["", None])
def test_an_answer_may_be_a_call_alone(write_jsonl: Write, content: str | None) -> None:
    call = {**CALLS, "content": content}
    assert one_demonstration(write_jsonl({"messages": [USER, call]})).completion == M_CALLS
    without = {name: value for name, value in call.items() if name != "content"}
    read = one_preference(write_jsonl({"prompt": [USER], "chosen": [without], "rejected": [ANSWER]}))
    assert (read.prompt, read.chosen) == ((M_USER,), M_CALLS)


@pytest.mark.parametrize(("content", "has_content"), [("", True), (None, False)])
def test_null_is_not_the_empty_text_for_a_template(write_jsonl: Write, content: str | None, has_content: bool) -> None:
    answer = one_demonstration(write_jsonl({"messages": [USER, {**CALLS, "content": content}]})).completion
    assert isinstance(answer, Message) and answer.has_content is has_content
    assert answer.as_dict() == {"role": "assistant", "content": content, "tool_calls": [CALL]}


@pytest.mark.parametrize("empty", [{"tool_calls": []}, {"tool_calls": "[]"}, {"name": ""}, {"extra": {}}])
def test_an_empty_field_is_not_there(write_jsonl: Write, empty: dict[str, object]) -> None:
    """``{% if 'tool_calls' in message %}`` is true for an empty list of calls."""
    read = one_demonstration(write_jsonl({"messages": [{**USER, **empty}, {**HELLO, **empty}]}))
    assert (read.prompt, read.completion) == ((M_USER,), Message("assistant", "Hello."))
    nothing = {"role": "assistant", "content": None, **empty}
    assert reason(write_jsonl, {"messages": [USER, nothing]}).startswith("not messages: messages has a turn")


@pytest.mark.parametrize("turn", [{"role": "assistant", "content": "Rain."}, {"from": "gpt", "value": "Rain."}])
def test_messages_as_json_text_are_messages(write_jsonl: Write, turn: dict[str, str]) -> None:
    """As in tables without lists."""
    row = {"prompt": json.dumps([USER]), "completion": json.dumps([turn])}
    asked = load_prompts(DataConfig(path=write_jsonl(row))).rows[0].prompt
    for each in (row, {"messages": json.dumps([USER, turn])}, {"prompt": [USER], "completion": json.dumps(turn)}):
        read = one_demonstration(write_jsonl(each))
        assert (read.prompt, read.completion) == ((M_USER,), Message("assistant", "Rain.")) and asked == read.prompt


@pytest.mark.parametrize(
    ("asked", "answered"),
    [
        ({"id": 1, "role": "user", "content": "Hi"}, {"id": 2, "role": "assistant", "content": "Hello."}),
        ({"name": "Ada", "content": "Hi", "role": "user"}, {"content": "Hello.", "role": "model"}),
        ({"role": "prompter", "content": "Hi"}, {"role": "assistant", "content": "Hello."}),
        ({"role": "Human", "content": "Hi"}, {"role": "AI", "content": "Hello."}),
        ({"id": "[1]", "from": "human", "value": "Hi"}, {"from": "chatgpt", "value": "Hello."}),
    ],
)
def test_json_text_is_messages_whatever_stands_first_in_a_turn(write_jsonl: Write, asked, answered) -> None:
    texts = write_jsonl({"messages": json.dumps([asked, answered])})
    lists = write_jsonl({"messages": [asked, answered]}, name="lists.jsonl")
    read = one_demonstration(texts)
    assert read.completion == Message("assistant", "Hello.", {"id": 2} if "id" in answered else {})
    assert (read.prompt, read.completion) == (one_demonstration(lists).prompt, one_demonstration(lists).completion)


def test_json_text_is_messages_where_one_speaker_is_known(write_jsonl: Write) -> None:
    critic = {"role": "critic", "content": "Be brief."}
    read = one_demonstration(write_jsonl({"messages": json.dumps([USER, critic, ANSWER])}))
    assert read.prompt == (M_USER, Message("critic", "Be brief."))


@pytest.mark.parametrize("write", [json.dumps, list])
def test_lists_of_texts_are_alternating_turns(write_jsonl: Write, write) -> None:
    """As in LMSYS's comparisons: one text per turn."""
    columns = {"prompt": "prompt", "chosen": "response_a", "rejected": "response_b"}
    row = {"prompt": write(["Hi"]), "response_a": write(["Hello."]), "response_b": write(["What?"])}
    path = write_jsonl(row)
    [pair] = load_preferences(DataConfig(path=path, columns=columns)).rows
    assert (pair.prompt, pair.chosen, pair.rejected) == (
        (Message("user", "Hi"),),
        Message("assistant", "Hello."),
        Message("assistant", "What?"),
    )
    [demonstration] = load_demonstrations(DataConfig(path=path, columns=columns)).rows
    assert (demonstration.prompt, demonstration.completion) == (pair.prompt, pair.chosen)
    for mapped in (columns, {"prompt": "prompt"}):
        assert load_prompts(DataConfig(path=path, columns=mapped)).rows[0].prompt == pair.prompt


def test_lists_of_texts_may_have_several_turns(write_jsonl: Write) -> None:
    row = {"prompt": json.dumps(["Hi", "And?"]), "chosen": '["Hello.", "Rain."]', "rejected": '["Hello.", "Sun."]'}
    read = one_preference(write_jsonl(row))
    before = (Message("user", "Hi"), Message("assistant", "Hello."), Message("user", "And?"))
    assert (read.prompt, read.chosen) == (before, Message("assistant", "Rain."))
    other = reason(write_jsonl, {**row, "rejected": '["Bye.", "Sun."]'}, load_preferences)
    assert other.startswith("prompts differ")


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"prompt": '["Hi"]', "chosen": '["a"]', "rejected": "[null]"}, "not messages: rejected has a turn"),
        ({"prompt": '["Hi"]', "chosen": '["a"]', "rejected": '[""]'}, "empty rejected"),
        ({"prompt": '["Hi", "And?"]', "chosen": '["a"]', "rejected": '["b"]'}, "unequal lists of turns: 2 texts in"),
        ({"prompt": '["Hi"]', "chosen": '["a"]', "rejected": "[]"}, "unequal lists of turns: 1 texts in prompt, 1"),
        ({"prompt": "['Hi']", "chosen": "['a']", "rejected": "['b']"}, "not JSON: prompt is text that looks like"),
        ({"prompt": '["Hi"]', "chosen": '["\\ud800"]', "rejected": '["b"]'}, "not Unicode: chosen"),
    ],
)
def test_lists_of_texts_that_are_no_turns_are_counted(write_jsonl: Write, row: dict[str, str], expected: str) -> None:
    assert reason(write_jsonl, row, load_preferences).startswith(expected)


def test_texts_without_the_answers_between_them_are_no_prompt(write_jsonl: Write) -> None:
    [bad] = load_prompts(DataConfig(path=write_jsonl({"prompt": "good"}, {"prompt": '["Hi", "And?"]'}))).bad
    assert bad.reason.startswith("unequal lists of turns: 2 texts in prompt")


def test_messages_in_the_column_text_are_not_trained_on_as_text(write_jsonl: Write) -> None:
    path = write_jsonl({"text": "good"}, {"text": json.dumps([HI, HELLO])})
    [bad] = load_demonstrations(DataConfig(path=path)).bad
    assert bad.reason == "not text: text holds messages (data.columns={messages: text} reads them)"
    [read] = load_demonstrations(DataConfig(path=path, columns={"messages": "text"})).rows
    assert (read.prompt, read.completion) == (messages(HI), *messages(HELLO))


def test_messages_as_pythons_text_are_refused_with_advice(write_jsonl: Write) -> None:
    named = [{"name": "Ada", **USER}, HELLO]
    for row in (
        {"messages": str([USER, HELLO])},
        {"prompt": str([USER]), "completion": "Rain."},
        {"messages": str(named)},
        {"messages": str([{"role": "prompter", "content": "Hi"}, HELLO])},
    ):
        assert "not JSON" in (why := reason(write_jsonl, row)) and "json.dumps" in why


@pytest.mark.parametrize(
    "text",
    [
        '{"role": "admin", "name": "Ada"}',
        '{"value": 3}',
        '[{"from": "a"}]',
        '{"content": 1',
        '{"role": "user", "content": "Bye"}',
        '{"role": "assistant", "content": "Bye"}',
        '{"model": "x", "messages": [{"role": "user", "content": "Bye"}]}',
        "{'model': 'x', 'messages': [{'role': 'user', 'content': 'Bye'}]}",
        '[{"role": "cook", "content": "Soup"}]',
        '["red", "blue"]',
        "['red', 'blue']",
    ],
)
def test_an_answer_that_is_json_is_text(write_jsonl: Write, text: str) -> None:
    """The answer is text for the model to write."""
    assert one_demonstration(write_jsonl({"prompt": "Who?", "completion": text})).completion == text
    asked = load_prompts(DataConfig(path=write_jsonl({"prompt": "Who?", "completion": text}))).rows[0].prompt
    assert asked == "Who?"


def test_json_text_is_parsed_where_templates_take_values(write_jsonl: Write) -> None:
    """As OpenAI's API returns arguments, and as columns of ``datasets`` hold tools."""
    text = {"type": "function", "function": {"name": "weather", "arguments": '{"city": "Bresk", "day": null}'}}
    row = {"messages": [USER, {**CALLS, "tool_calls": [text]}], "tools": json.dumps(TOOLS)}
    read = one_demonstration(write_jsonl(row))
    assert read.completion == M_CALLS and read.variables == {"tools": TOOLS}
    broken = {"type": "function", "function": {"name": "weather", "arguments": '{"city": '}}
    read = one_demonstration(write_jsonl({"messages": [USER, {**CALLS, "tool_calls": [broken]}], "tools": ""}))
    assert read.completion == Message("assistant", "", {"tool_calls": [broken]}) and read.variables == {}


@pytest.mark.parametrize("kind", ["parquet", "datasets"])
def test_what_a_table_fills_in_is_not_there(tmp_path: Path, kind: str) -> None:
    """A table adds all fields to every struct; the message ``{role, content}`` returns with three more."""
    row = {"messages": [USER, {**CALLS, "content": None}, RESULT, ANSWER], "tools": TOOLS}
    if kind == "parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist([row]), tmp_path / "rows.parquet")
        path = tmp_path / "rows.parquet"
        raw = pyarrow.parquet.read_table(path).to_pylist()[0]["messages"][0]
        assert raw["tool_calls"] is None  # what is tested here
    else:
        path = tmp_path / "saved"
        datasets.Dataset.from_list([row]).save_to_disk(path)
    read = one_demonstration(str(path))
    call = {"type": "function", "function": {"name": "weather", "arguments": {"city": "Bresk"}}}
    assert read.prompt[:2] == (M_USER, Message("assistant", "", {"tool_calls": [call]}))
    assert read.prompt[2] == Message("tool", "rain", {"name": "weather"})
    assert read.variables == {"tools": TOOLS}


def test_parts_of_text_are_joined(write_jsonl: Write) -> None:
    parts = [{"type": "text", "text": "Weather "}, {"type": "text", "text": "in Bresk?"}]
    assert one_demonstration(write_jsonl({"messages": [{**USER, "content": parts}, ANSWER]})).prompt == (M_USER,)


def test_conversations_of_from_and_value(write_jsonl: Write) -> None:
    turns = [{"from": "human", "value": "Weather in Bresk?"}, {"from": "gpt", "value": "Rain."}]
    read = one_demonstration(write_jsonl({"conversations": turns}))
    assert (read.prompt, read.completion) == ((M_USER,), Message("assistant", "Rain."))


def test_conversations_of_input_and_output(write_jsonl: Write) -> None:
    """As in Capybara."""
    pairs = [{"input": "Hi", "output": "Hello."}, {"input": "Weather in Bresk?", "output": "Rain."}]
    read = one_demonstration(write_jsonl({"conversation": pairs}))
    assert read.prompt == (Message("user", "Hi"), Message("assistant", "Hello."), M_USER)
    assert read.completion == Message("assistant", "Rain.")
    assert reason(write_jsonl, {"conversation": [{**pairs[0], "id": 1}]}).startswith("not messages")


def test_turns_before_an_instruction_are_not_dropped(write_jsonl: Write) -> None:
    """Alpaca's files of several turns have the earlier ones in a separate column."""
    row = {"instruction": "And?", "input": "", "output": "Rain.", "history": [["Hi", "Hello."]]}
    path = write_jsonl({**row, "history": []}, row)
    loaded = load_demonstrations(DataConfig(path=path))
    assert [row.prompt for row in loaded.rows] == ["And?"]
    assert [(bad.source.line, bad.category) for bad in loaded.bad] == [(2, "turns before the prompt")]
    assert len(load_demonstrations(DataConfig(path=path, ignore=("history",))).rows) == 2
    assert len(load_prompts(DataConfig(path=path)).bad) == 1


IMAGE = {"type": "image_url", "image_url": {"url": "http://x/y.png"}}


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        (
            {"messages": [{"role": "user", "content": [IMAGE]}, ANSWER]},
            "images, video or audio: messages has a part of",
        ),
        (
            {"messages": [USER, {"role": "assistant", "content": [{"type": "thinking", "thinking": "Rain?"}]}]},
            "not text: messages has a part of type 'thinking'; other data belongs beside content, in fields",
        ),
        ({"prompt": "a", "completion": "b", "images": ["y.png"]}, "images, video or audio: the row has images"),
        ({"prompt": "a", "completion": "b", "image": {"bytes": "..."}}, "images, video or audio: the row has image"),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}, ANSWER]}, "not messages"),
        ({"messages": [{"role": "user"}, ANSWER]}, "not messages"),
        ({"messages": [USER, {"role": "assistant", "content": ""}]}, "empty messages"),
        ({"messages": [USER, ANSWER], "tools": "weather"}, "not JSON: tools"),
        ({"messages": [USER, ANSWER], "tools": {"a": 1}}, "not tools"),
        ({"messages": [USER, ANSWER], "chat_template_kwargs": [1]}, "not a mapping"),
    ],
)
def test_what_no_template_can_take_is_counted(write_jsonl: Write, row: object, expected: str) -> None:
    assert reason(write_jsonl, row).startswith(expected)


def test_half_a_character_deep_in_a_call_is_found(write_jsonl: Write) -> None:
    call = {**CALLS, "tool_calls": [{"function": {"name": "w", "arguments": {"city": ["\ud800"]}}}]}
    assert reason(write_jsonl, json.dumps({"messages": [USER, call]})).startswith("not Unicode")


TREE = {"message_tree_id": "t", "prompt": {"text": "Hi", "role": "prompter", "replies": [{"text": "Hello."}]}}


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"message_id": "m", "parent_id": None, "text": "Hi", "role": "prompter"}, "one turn of a tree"),
        (TREE, "columns missing"),
    ],
)
def test_trees_are_counted(write_jsonl: Write, row: dict[str, object], expected: str) -> None:
    assert reason(write_jsonl, row).startswith(expected)


def test_no_images_are_no_reason(write_jsonl: Write) -> None:
    assert one_demonstration(write_jsonl({"prompt": "a", "completion": "b", "images": []})).completion == "b"


HI, HELLO, NO = (
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "Hello."},
    {"role": "assistant", "content": "No."},
)
BE_BRIEF, ALSO = {"role": "system", "content": "Be brief."}, {"role": "user", "content": "Also?"}


def messages(*turns: dict[str, str]) -> tuple[Message, ...]:
    return tuple(Message(turn["role"], turn["content"]) for turn in turns)


@pytest.mark.parametrize(
    ("prompt", "conversation", "expected"),
    [
        ([HI], [HI], [HI]),
        ([BE_BRIEF, HI], [BE_BRIEF, HI], [BE_BRIEF, HI]),
        ([BE_BRIEF, HI], [HI], [BE_BRIEF, HI]),
        ([HI], [BE_BRIEF, HI], [BE_BRIEF, HI]),
        ([BE_BRIEF], [HI], [BE_BRIEF, HI]),
        ([HI], [], [HI]),
        ([HI, HELLO], [ALSO], [HI, HELLO, ALSO]),
        ([HI, HELLO, ALSO], [HI, HELLO, ALSO], [HI, HELLO, ALSO]),
        ([{**HI, "content": "Hi "}], [HI], [{**HI, "content": "Hi "}]),
    ],
)
def test_a_repeated_prompt_is_kept_once(write_jsonl: Write, prompt, conversation, expected) -> None:
    row = {"prompt": prompt, "chosen": [*conversation, HELLO], "rejected": [*conversation, NO]}
    read = one_preference(write_jsonl(row))
    assert (read.prompt, read.chosen, read.rejected) == (messages(*expected), *messages(HELLO, NO))
    read = one_demonstration(write_jsonl({"prompt": prompt, "completion": [*conversation, HELLO]}))
    assert (read.prompt, read.completion) == (messages(*expected), *messages(HELLO))


@pytest.mark.parametrize(
    ("prompt", "conversation"),
    [
        ([HI], [ALSO]),
        ([BE_BRIEF, HI], [{**BE_BRIEF, "content": "Be long."}, HI]),
        ([HI, HELLO], [HI, NO]),
        ("Hi", [ALSO]),
    ],
)
def test_a_conversation_with_another_prompt_is_a_bad_row(write_jsonl: Write, prompt, conversation) -> None:
    row = {"prompt": prompt, "chosen": [*conversation, HELLO], "rejected": [*conversation, NO]}
    assert reason(write_jsonl, row, load_preferences).startswith(
        "prompts differ: chosen is a conversation that does not"
    )


BEGUN = {"role": "assistant", "content": "The answer is"}


@pytest.mark.parametrize(
    ("completion", "expected"),
    [
        (" four.", " four."),
        ([{"role": "assistant", "content": " four."}], Message("assistant", " four.")),
        ([HI, {"role": "assistant", "content": "The answer is four."}], Message("assistant", " four.")),
    ],
)
def test_a_turn_that_the_prompt_begins_is_continued(write_jsonl: Write, completion, expected) -> None:
    read = one_demonstration(write_jsonl({"prompt": [HI, BEGUN], "completion": completion}))
    assert (read.prompt, read.completion) == (messages(HI, BEGUN), expected)
    row = {
        "prompt": [HI, BEGUN],
        "chosen": completion,
        "rejected": [HI, {"role": "assistant", "content": "The answer is 5"}],
    }
    assert one_preference(write_jsonl(row)).chosen == expected
    [asked] = load_prompts(DataConfig(path=write_jsonl({"prompt": [HI, BEGUN]}))).rows
    assert asked.prompt == messages(HI, BEGUN)


@pytest.mark.parametrize("names", [("role", "content"), ("from", "value")])
@pytest.mark.parametrize(
    ("role", "known"),
    [
        ("human", "user"),
        ("Human", "user"),
        ("User", "user"),
        ("prompter", "user"),
        ("SYSTEM", "system"),
        ("Observation", "observation"),
        ("Ada", "Ada"),
    ],
)
def test_roles_have_their_known_names(write_jsonl: Write, names: tuple[str, str], role: str, known: str) -> None:
    first, second = (dict(zip(names, turn, strict=True)) for turn in ((role, "Hi"), ("gpt", "Hello.")))
    assert one_demonstration(write_jsonl({"messages": [first, second]})).prompt == (Message(known, "Hi"),)


@pytest.mark.parametrize("role", ["model", "AI", "gpt", "bot", "ChatGPT", "Assistant"])
def test_an_answer_is_known_by_any_name_of_the_assistant(write_jsonl: Write, role: str) -> None:
    read = one_demonstration(write_jsonl({"messages": [HI, {"role": role, "content": "Hello."}]}))
    assert (read.prompt, read.completion) == (messages(HI), Message("assistant", "Hello."))


def test_a_turn_of_a_call_is_the_assistants(write_jsonl: Write) -> None:
    call = {"name": "weather", "arguments": {"city": "Bresk"}}
    as_text = {**call, "arguments": json.dumps(call["arguments"])}
    for value in (json.dumps(call), json.dumps([call]), json.dumps(as_text)):
        turns = [{"from": "human", "value": "Hi"}, {"from": "function_call", "value": value}]
        made = one_demonstration(write_jsonl({"conversations": turns})).completion
        assert made == Message("assistant", "", {"tool_calls": [{"type": "function", "function": call}]})
        assert isinstance(made, Message) and not made.has_content


@pytest.mark.parametrize("value", ["weather(Bresk)", '{"name": "weather"}', "[]", "7"])
def test_a_turn_of_a_call_that_is_none_is_counted(write_jsonl: Write, value: str) -> None:
    turns = [HI, {"role": "function_call", "content": value}, HELLO]
    assert reason(write_jsonl, {"messages": turns}).startswith("not a call: a turn of role function_call is")


@pytest.mark.parametrize(
    "value", [{"enable_thinking": None, "day": "Monday"}, '{"enable_thinking": null, "day": "Monday"}']
)
def test_what_is_null_is_not_given_to_the_template(write_jsonl: Write, value: object) -> None:
    """A template that tests whether ``enable_thinking`` is defined reads null as false."""
    row = {"messages": [HI, HELLO], "chat_template_kwargs": value}
    assert one_demonstration(write_jsonl(row)).variables == {"day": "Monday"}


@pytest.mark.parametrize(
    ("given", "trained"),
    [
        ({"weight": 0}, False),
        ({"weight": 0.0}, False),
        ({"train": False}, False),
        ({"loss": False}, False),
        ({"weight": 1}, True),
        ({"train": True, "weight": None}, True),
        ({"weight": 1, "loss": False}, False),
    ],
)
def test_a_turn_can_be_excluded_from_training(write_jsonl: Write, given: dict[str, object], trained: bool) -> None:
    made = one_demonstration(write_jsonl({"messages": [{**HI, "weight": 0}, {**HELLO, **given}]}))
    assert made.completion == Message("assistant", "Hello.") and made.prompt == messages(HI)
    assert isinstance(made.completion, Message) and made.completion.trained is trained


@pytest.mark.parametrize("given", [{"weight": 0.5}, {"train": "no"}, {"loss": 2}])
def test_a_weight_that_is_neither_is_counted(write_jsonl: Write, given: dict[str, object]) -> None:
    assert reason(write_jsonl, {"messages": [HI, {**HELLO, **given}]}).startswith("not a weight: a turn's")
