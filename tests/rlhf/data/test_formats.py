from __future__ import annotations

import gzip
import json
from collections import Counter
from collections.abc import Callable

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rlhf.config.schema import DataConfig
from rlhf.data.formats import load_demonstrations, load_preferences, load_prompts
from rlhf.errors import UserError
from rlhf.records import Message, text_of

USER = {"role": "user", "content": "What is the sky?"}
SYSTEM = {"role": "system", "content": "Be brief."}
BLUE = {"role": "assistant", "content": "Blue."}
GREEN = {"role": "assistant", "content": "Green."}
M_USER, M_SYSTEM, M_BLUE = (Message(turn["role"], turn["content"]) for turn in (USER, SYSTEM, BLUE))

Write = Callable[..., str]


def demonstrations(path: str, **options: object) -> list[tuple[object, str]]:
    return [(row.prompt, text_of(row.completion)) for row in load_demonstrations(DataConfig(path=path, **options)).rows]


def preferences(path: str, **options: object) -> list[tuple[object, str, str, float]]:
    rows = load_preferences(DataConfig(path=path, **options)).rows
    return [(row.prompt, text_of(row.chosen), text_of(row.rejected), row.margin) for row in rows]


def prompts(path: str, **options: object) -> list[object]:
    return [row.prompt for row in load_prompts(DataConfig(path=path, **options)).rows]


def reasons(loaded: object) -> list[tuple[int, str]]:
    return [(bad.source.line, bad.category) for bad in loaded.bad]


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"prompt": "The sky is", "completion": " blue."}, ("The sky is", " blue.")),
        ({"prompt": [SYSTEM, USER], "completion": [BLUE]}, ((M_SYSTEM, M_USER), "Blue.")),
        ({"prompt": [USER], "completion": "Blue."}, ((M_USER,), "Blue.")),
        ({"prompt": "a", "completion": "b", "label": True}, ("a", "b")),
        ({"messages": [USER, BLUE, USER, GREEN]}, ((M_USER, M_BLUE, M_USER), "Green.")),
        ({"messages": [USER, BLUE, USER]}, ((M_USER,), "Blue.")),
        ({"text": "Once upon a time."}, ("", "Once upon a time.")),
        ({"prompt": "a", "chosen": "b", "rejected": "c"}, ("a", "b")),
        ({"prompt": "What is the sky?", "messages": [USER, BLUE]}, ((M_USER,), "Blue.")),
    ],
)
def test_demonstrations_in_every_format(write_jsonl: Write, row: dict, expected: tuple) -> None:
    assert demonstrations(write_jsonl(row)) == [expected]


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"prompt": "The sky is", "chosen": " blue.", "rejected": " green."}, ("The sky is", " blue.", " green.", 0.0)),
        ({"prompt": [USER], "chosen": [BLUE], "rejected": [GREEN], "margin": 2}, ((M_USER,), "Blue.", "Green.", 2.0)),
        (
            {"chosen": [SYSTEM, USER, BLUE], "rejected": [SYSTEM, USER, GREEN]},
            ((M_SYSTEM, M_USER), "Blue.", "Green.", 0.0),
        ),
        (
            {"prompt": "What is  the sky? ", "chosen": [USER, BLUE], "rejected": [USER, GREEN]},
            ((M_USER,), "Blue.", "Green.", 0.0),
        ),
        ({"prompt": "a", "chosen": "b", "rejected": "c", "margin": None}, ("a", "b", "c", 0.0)),
        (
            {"prompt": "What is the sky?", "chosen": [BLUE], "rejected": [GREEN]},
            ((M_USER,), "Blue.", "Green.", 0.0),
        ),
    ],
)
def test_preferences_in_every_format(write_jsonl: Write, row: dict, expected: tuple) -> None:
    assert preferences(write_jsonl(row)) == [expected]


@pytest.mark.parametrize(
    ("chosen", "rejected", "prompt"),
    [
        ("The sky is blue.", "The sky is green.", "The sky is"),
        ("The sky is blue.", "The sky is black.", "The sky is"),  # not "The sky is bl"
        ("Q: sky?\nA: blue", "Q: sky?\nA: no", "Q: sky?\nA:"),
        ("Say it: it's", "Say it: it'd", "Say it:"),  # a mark inside a word does not end it
        ("The (blue) sky", "The (black) sky", "The"),
        ("a well-known b", "a well-worn b", "a"),
        ("It is so", "It is so not", "It is"),  # one begins the other: its last word is still an answer
    ],
)
def test_an_implicit_text_prompt_ends_at_a_word(write_jsonl: Write, chosen: str, rejected: str, prompt: str) -> None:
    [(found, good, bad, _)] = preferences(write_jsonl({"chosen": chosen, "rejected": rejected}))
    assert (found, found + good, found + bad) == (prompt, chosen, rejected)


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"prompt": "The sky is"}, "The sky is"),
        ({"prompt": [SYSTEM, USER]}, (M_SYSTEM, M_USER)),
        ({"prompt": "a", "chosen": True, "rejected": 3}, "a"),  # answers are ignored
        ({"chosen": [USER, BLUE], "rejected": [USER, GREEN]}, (M_USER,)),
        ({"prompt": "What is  the sky? ", "chosen": [USER, BLUE], "rejected": [USER, GREEN]}, (M_USER,)),
        ({"messages": [USER, BLUE]}, (M_USER,)),
        ({"messages": [USER, BLUE, USER]}, (M_USER, M_BLUE, M_USER)),
        ({"chosen": "The sky is blue.", "rejected": "The sky is green."}, "The sky is"),
    ],
)
def test_prompts_in_every_format(write_jsonl: Write, row: dict, expected: object) -> None:
    assert prompts(write_jsonl(row)) == [expected]


HI, HELLO = {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello!"}
CONVERSATION = [SYSTEM, HI, HELLO, USER]
M_CONVERSATION = tuple(Message(turn["role"], turn["content"]) for turn in CONVERSATION)


@pytest.mark.parametrize(
    ("chosen", "rejected"),
    [("Blue.", "Green."), ([BLUE], [GREEN]), (BLUE, GREEN), ({"from": "gpt", "value": "Blue."}, GREEN)],
)
@pytest.mark.parametrize(
    ("beside", "expected"),
    [
        ({"messages": CONVERSATION}, M_CONVERSATION),
        ({"conversations": CONVERSATION}, M_CONVERSATION),
        ({"messages": [*CONVERSATION, BLUE]}, M_CONVERSATION),
        ({"messages": [*CONVERSATION, GREEN]}, M_CONVERSATION),
        ({"messages": CONVERSATION[1:], "system": "Be brief."}, M_CONVERSATION),
        ({"messages": CONVERSATION, "prompt": "What is the sky?"}, M_CONVERSATION),
        ({"messages": CONVERSATION, "prompt": CONVERSATION}, M_CONVERSATION),
        ({"messages": CONVERSATION, "question": "a title"}, M_CONVERSATION),
        ({"prompt": "What is the sky?"}, (M_USER,)),
        ({"prompt": [USER]}, (M_USER,)),
    ],
)
def test_answers_follow_one_conversation_in_every_stage(write_jsonl: Write, beside, expected, chosen, rejected) -> None:
    if beside == {"prompt": "What is the sky?"} and isinstance(chosen, str):
        expected = "What is the sky?"
    path = write_jsonl({**beside, "chosen": chosen, "rejected": rejected})
    assert preferences(path) == [(expected, "Blue.", "Green.", 0.0)]
    assert demonstrations(path) == [(expected, "Blue.")] and prompts(path) == [expected]
    path = write_jsonl({**beside, "completion": chosen})
    if beside.get("messages") != [*CONVERSATION, GREEN]:
        assert demonstrations(path) == [(expected, "Blue.")] and prompts(path) == [expected]


@pytest.mark.parametrize(
    ("beside", "expected"),
    [
        (
            {"messages": [USER, {**BLUE, "content": "Red."}]},
            "prompts differ: messages ends with an answer that is none",
        ),
        (
            {"messages": [USER], "prompt": "And the sea?"},
            "prompts differ: messages is a conversation that does not hold",
        ),
        ({"messages": [USER], "prompt": [HI]}, "prompts differ: messages is a conversation that does not begin"),
    ],
)
def test_answers_to_another_conversation_are_bad_rows(write_jsonl: Write, beside, expected) -> None:
    path = write_jsonl(
        {"prompt": "a", "chosen": "b", "rejected": "c"}, {**beside, "chosen": "Blue.", "rejected": "Green."}
    )
    for load in (load_preferences, load_demonstrations, load_prompts):
        [bad] = load(DataConfig(path=path)).bad
        assert bad.reason.startswith(expected)


def test_a_conversation_that_is_ignored_is_not_there(write_jsonl: Write) -> None:
    path = write_jsonl({"prompt": "And the sea?", "messages": [USER], "chosen": "Blue.", "rejected": "Green."})
    assert preferences(path, ignore=("messages",)) == [("And the sea?", "Blue.", "Green.", 0.0)]


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"prompt": "What is the sky?", "completion": [BLUE]}, (M_USER,)),
        ({"prompt": "What is the sky?", "completion": BLUE}, (M_USER,)),
        ({"prompt": "What is the sky?", "completion": [SYSTEM, USER, BLUE]}, (M_SYSTEM, M_USER)),
        ({"prompt": [USER], "completion": [SYSTEM, USER, BLUE]}, (M_SYSTEM, M_USER)),
        ({"instruction": "Say it", "input": "x", "output": [BLUE]}, (Message("user", "Say it\n\nx"),)),
        ({"prompt": "What is the sky?", "completion": "Blue."}, "What is the sky?"),
    ],
)
def test_a_prompt_is_read_the_same_with_and_without_its_answer(write_jsonl: Write, row, expected) -> None:
    assert demonstrations(write_jsonl(row)) == [(expected, "Blue.")] and prompts(write_jsonl(row)) == [expected]


def test_answers_that_are_no_turns_are_ignored_beside_a_prompt(write_jsonl: Write) -> None:
    """SQuAD's answers are lists of texts, which reward functions get."""
    path = write_jsonl(
        {"question": "Sky?", "answer": ["Blue", "blue"]}, {"question": "Sky?", "answer": {"text": "Blue"}}
    )
    assert prompts(path) == ["Sky?", "Sky?"]


def test_nothing_but_ties_is_refused_as_such(write_jsonl: Write) -> None:
    rows = [{"q": "a", "output_1": "b", "output_2": "c", "w": "tie"}] * 2
    columns = {"prompt": "q", "chosen": "output_1", "rejected": "output_2", "label": "w"}
    with pytest.raises(UserError, match="no usable row") as caught:
        preferences(write_jsonl(*rows), columns=columns)
    assert caught.value.why == "2 comparisons are ties, and there are no others"


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"prompt": "a", "chosen": True, "rejected": "c"}, "not text: chosen is True"),
        ({"prompt": "a", "chosen": "b", "rejected": 7}, "not text: rejected is 7"),
        ({"prompt": "a", "chosen": "b", "rejected": None}, "not text: rejected is None"),
        ({"prompt": None, "chosen": "b", "rejected": "c"}, "not text: prompt is None"),
        ({"prompt": "a", "chosen": "b", "rejected": {"x": 1}}, "not text: rejected is {'x': 1}"),
        ({"prompt": "a", "chosen": "b", "rejected": "b"}, "chosen equals rejected"),
        ({"prompt": "a", "chosen": " \n", "rejected": "b"}, "empty chosen"),
        ({"prompt": "", "chosen": "b", "rejected": "c"}, "empty prompt"),
        ({"chosen": "yes", "rejected": "no"}, "empty prompt"),
        ({"prompt": "a", "chosen": "b"}, "columns missing"),
        ({"question": "a"}, "columns missing"),
        ({"chosen": [USER, BLUE], "rejected": [SYSTEM, USER, GREEN]}, "prompts differ"),
        ({"prompt": [USER], "chosen": [BLUE], "rejected": []}, "not messages"),
        ({"prompt": " ", "chosen": [BLUE], "rejected": [GREEN]}, "empty prompt"),
        ({"chosen": [USER, BLUE], "rejected": [USER]}, "no assistant turn"),
        ({"chosen": [USER, {"role": "assistant", "content": None}], "rejected": [USER, BLUE]}, "not messages"),
        ({"prompt": "a", "chosen": "b", "rejected": "c", "margin": True}, "not a number: margin is True"),
        ({"prompt": "a", "chosen": "b", "rejected": "c", "margin": "2"}, "not a number: margin is '2'"),
        ({"prompt": "a", "chosen": "b", "rejected": "c", "margin": float("nan")}, "not a number: margin is nan"),
        ('{"prompt": "a", "chosen": "b", "rejected": "c", "margin": 1e400}', "not a number: margin is inf, not"),
        ('{"prompt": "a", "chosen": "\\ud800", "rejected": "c"}', "not Unicode"),
        ("not json", "not JSON"),
    ],
)
def test_malformed_preferences_are_bad_rows(write_jsonl: Write, row: object, reason: str) -> None:
    good = {"prompt": "a", "chosen": "b", "rejected": "c"}
    loaded = load_preferences(DataConfig(path=write_jsonl(good, row, good)))
    assert [kept.source.line for kept in loaded.rows] == [1, 3]
    assert [bad.source.line for bad in loaded.bad] == [2]
    assert loaded.bad[0].reason.startswith(reason)


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"prompt": "a", "completion": "b", "label": False}, "label is false"),
        ({"prompt": "a", "completion": "b", "label": 1}, "not a label"),
        ({"completion": "b"}, "columns missing: needs prompt beside completion"),
        ({"messages": [USER]}, "no assistant turn"),
        ({"messages": "What is the sky?"}, "not messages"),
        ({"text": 5}, "not text: text is 5"),
        ({"messages": [USER, BLUE], "label": False}, "label is false"),
        ({"messages": [USER, BLUE], "label": 0}, "not a label: label is 0"),
        ({"conversations": [{"from": "human", "value": "Sky?"}, {"from": "gpt", "value": "?"}], "label": False}, "lab"),
        ({"text": "a", "label": False}, "label is false"),
        ({"prompt": "Write of X", "text": "X is nice."}, "prompt beside text: data.columns={completion: text}"),
        ({"instruction": "Write of X", "text": "X is nice."}, "prompt beside text: data.columns={completion: text}"),
        ({"prompt": "You are a pirate.", "messages": [USER, BLUE]}, "prompts differ: messages is a conversation that"),
        (
            {"prompt": [SYSTEM, USER], "messages": [{**SYSTEM, "content": "Be long."}, USER, BLUE]},
            "prompts differ: messages",
        ),
    ],
)
def test_malformed_demonstrations_are_bad_rows(write_jsonl: Write, row: object, reason: str) -> None:
    loaded = load_demonstrations(DataConfig(path=write_jsonl({"text": "good"}, row)))
    assert len(loaded.rows) == 1 and loaded.bad[0].reason.startswith(reason)


@pytest.mark.parametrize(
    "row",
    [
        {"messages": [USER, BLUE], "label": True},
        {"text": "Blue.", "label": 0},  # a class of the text
        {"text": "Blue.", "label": True},
        {"text": "Blue.", "prompt": None},
        {"prompt": "What is the sky?", "text": "Blue."} | {"completion": "Blue."},
    ],
)
def test_labels_and_prompts_that_are_no_reason(write_jsonl: Write, row: dict) -> None:
    [(_, completion)] = demonstrations(write_jsonl(row))
    assert completion == "Blue."


def test_the_advice_for_a_prompt_beside_a_text_is_true(write_jsonl: Write) -> None:
    path = write_jsonl({"prompt": "Write of X", "text": "X is nice."})
    assert demonstrations(path, columns={"completion": "text"}) == [("Write of X", "X is nice.")]
    assert demonstrations(path, ignore=("prompt",)) == [("", "X is nice.")]


@pytest.mark.parametrize(
    ("prompt", "conversation", "asked"),
    [
        ("What is the sky?", [USER, BLUE], [USER]),
        ("What is the sky?", [SYSTEM, USER, BLUE, USER], [SYSTEM, USER, BLUE, USER]),
        ([USER], [USER], [USER]),
        ([USER], [USER, BLUE], [USER]),
        ([SYSTEM, USER], [USER, BLUE], [SYSTEM, USER]),
        ([USER], [SYSTEM, USER, BLUE], [SYSTEM, USER]),
        (None, [USER, BLUE], [USER]),
        ("And the sea?", [USER, BLUE], None),
        ([{**USER, "content": "And the sea?"}], [USER, BLUE], None),
    ],
)
def test_a_prompt_beside_a_conversation_stands_in_it(write_jsonl: Write, prompt, conversation, asked) -> None:
    loaded = load_prompts(DataConfig(path=write_jsonl({"prompt": "a"}, {"prompt": prompt, "messages": conversation})))
    expected = [] if asked is None else [tuple(Message(turn["role"], turn["content"]) for turn in asked)]
    assert [row.prompt for row in loaded.rows[1:]] == expected
    assert [bad.category for bad in loaded.bad] == (["prompts differ"] if asked is None else [])


@pytest.mark.parametrize(
    "row",
    [
        {"messages": [USER, BLUE, GREEN]},
        {"messages": [USER, BLUE, GREEN, USER, BLUE]},
        {"messages": [USER, {**BLUE, "tool_calls": [{"function": {"name": "f", "arguments": {}}}]}, GREEN]},
        {"messages": [USER, BLUE, GREEN], "completion": "Green."},
        {"chosen": [USER, BLUE, GREEN], "rejected": [USER, BLUE, BLUE]},
        {"prompt": [USER, BLUE, GREEN], "chosen": "b", "rejected": "c", "completion": "b"},
        {"prompt": [USER], "chosen": [BLUE, GREEN], "rejected": [BLUE, BLUE], "completion": [BLUE, GREEN]},
        {
            "chosen": "\n\nHuman: Sky?\n\nAssistant: One.\n\nAssistant: Blue.",
            "rejected": "\n\nHuman: Sky?\n\nAssistant: One.\n\nAssistant: Red.",
        },
    ],
)
def test_two_consecutive_answers_are_quarantined(write_jsonl: Write, row: dict) -> None:
    config = DataConfig(path=write_jsonl(row))
    loads = [load_demonstrations, load_prompts] + [load_preferences] * ("chosen" in row)
    for load in loads:
        with pytest.raises(UserError, match="assistant turns in a row"):
            load(config)


def test_a_tools_result_stands_between_two_turns_of_the_assistant(write_jsonl: Write) -> None:
    call = {**BLUE, "tool_calls": [{"function": {"name": "f", "arguments": {}}}]}
    path = write_jsonl({"messages": [USER, call, {"role": "tool", "content": "blue"}, GREEN]})
    assert [answer for _, answer in demonstrations(path)] == ["Green."]


def test_two_people_who_agree_are_two_votes(write_jsonl: Write) -> None:
    row = {"prompt": "a", "chosen": "b", "rejected": "c"}
    assert len(preferences(write_jsonl(row, row))) == 2


def test_columns_are_renamed(write_jsonl: Write) -> None:
    row = {"question": "a", "prompt": "not this", "good": "b", "bad": "c", "gap": 1.5}
    columns = {"prompt": "question", "chosen": "good", "rejected": "bad", "margin": "gap"}
    assert preferences(write_jsonl(row), columns=columns) == [("a", "b", "c", 1.5)]


def test_a_column_that_is_read_under_another_name_is_not_read_under_its_own(write_jsonl: Write) -> None:
    row = {"prompt": "a", "completion": "b", "rejected": "c"}
    assert preferences(write_jsonl(row), columns={"chosen": "completion"}) == [("a", "b", "c", 0.0)]


def test_a_renamed_column_that_is_missing_is_named(write_jsonl: Write) -> None:
    path = write_jsonl({"prompt": "a", "completion": "b"}, {"question": "a", "completion": "b"})
    loaded = load_demonstrations(DataConfig(path=path, columns={"prompt": "question"}))
    assert loaded.bad[0].reason.startswith("no column 'question'") and loaded.bad[0].source.line == 1


def test_a_rename_to_a_name_without_meaning_is_refused(write_jsonl: Write) -> None:
    with pytest.raises(UserError, match="renames 'promt'"):
        prompts(write_jsonl({"question": "a"}), columns={"promt": "question"})


def test_a_stage_reads_its_own_path(write_jsonl: Write) -> None:
    every = write_jsonl({"prompt": "all"}, name="all.jsonl")
    config = DataConfig(
        path=every,
        prompts=write_jsonl({"prompt": "own"}, name="own.jsonl"),
        demonstrations=write_jsonl({"text": "shown"}, name="shown.jsonl"),
    )
    assert load_prompts(config).rows[0].prompt == "own"
    assert load_demonstrations(config).rows[0].completion == "shown"
    judged = write_jsonl({"prompt": "p", "chosen": "c", "rejected": "r"}, name="judged.jsonl")
    assert load_preferences(DataConfig(path=every, preferences=judged)).rows[0].chosen == "c"


def test_bad_rows_stop_the_run_if_the_recipe_asks(write_jsonl: Write) -> None:
    path = write_jsonl({"prompt": "a"}, {"prompt": 3})
    with pytest.raises(UserError, match=r"rows\.jsonl:2: not text: prompt is 3"):
        load_prompts(DataConfig(path=path, bad_rows="error"))


def test_nothing_to_use_is_refused(write_jsonl: Write) -> None:
    with pytest.raises(UserError, match="the recipe names no data"):
        load_prompts(DataConfig())
    with pytest.raises(UserError, match="no rows in"):
        load_prompts(DataConfig(path=write_jsonl()))
    with pytest.raises(UserError, match=r"all 2 rows are bad:\n  2 × columns missing.*rows\.jsonl:1, rows\.jsonl:2"):
        load_prompts(DataConfig(path=write_jsonl({"q": 1}, {"q": 2})))


HH = "\n\nHuman: Hi\n\nAssistant: Hello!\n\nHuman: Sky?\n\nAssistant:"


def test_hh_transcripts_serve_all_stages(write_jsonl: Write) -> None:
    pair = {"chosen": HH + " Blue.", "rejected": HH + " Green."}
    path = write_jsonl(
        "not json",
        {"chosen": HH, "rejected": "too short to tell"},
        pair,
        pair,
        {"chosen": HH + " Blue.", "rejected": HH + "\n"},
        {"chosen": HH + " Blue.", "rejected": HH + " Blue. "},
        {"chosen": HH + " Blue.", "rejected": HH + " Green.\n\nHuman: Sure?\n\nAssistant: Yes."},
    )
    prompt = (Message("user", "Hi"), Message("assistant", "Hello!"), Message("user", "Sky?"))
    loaded = load_preferences(DataConfig(path=path))
    assert preferences(path) == [(prompt, "Blue.", "Green.", 0.0)]
    assert demonstrations(path) == [(prompt, "Blue.")]
    assert prompts(path) == [prompt]
    expected = [
        "not JSON",
        "not a transcript",
        "duplicate",
        "empty rejected",
        "chosen equals rejected",
        "prompts differ",
    ]
    assert reasons(loaded) == list(zip([1, 2, 4, 5, 6, 7], expected, strict=True))


values = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.text(max_size=5),
    st.lists(
        st.fixed_dictionaries({"role": st.sampled_from(["user", "assistant"]), "content": st.text(max_size=3)}),
        max_size=3,
    ),
)
names = st.sampled_from(["prompt", "completion", "chosen", "rejected", "messages", "text", "margin", "tools", "system"])
any_row = st.one_of(
    st.dictionaries(names, values, max_size=5).map(json.dumps), st.just("[]"), st.just("{"), st.just('"x"')
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=st.lists(any_row, max_size=8))
def test_every_row_is_used_or_reported_whatever_it_holds(write_jsonl: Write, rows: list[str]) -> None:
    both = {"prompt": "a", "completion": "b", "chosen": "b", "rejected": "c"}
    path = write_jsonl(*rows, both)
    for load in (load_demonstrations, load_preferences, load_prompts):
        loaded = load(DataConfig(path=path))
        lines = [row.source.line for row in loaded.rows] + [row.source.line for row in loaded.bad]
        assert sorted(lines) == list(range(1, len(rows) + 2))


def test_the_real_hh_file(shared_file: Callable[[str], str]) -> None:
    path = shared_file("hh-rlhf/harmless-base.jsonl.gz")
    config = DataConfig(path=path)
    loaded = load_preferences(config)
    assert len(loaded.rows) + len(loaded.bad) == 1734
    assert Counter(bad.category for bad in loaded.bad) == {"assistant turns in a row": 6, "empty chosen": 3}
    assert [row.source for row in load_prompts(config).rows] == [row.source for row in loaded.rows]
    assert [row.completion for row in load_demonstrations(config).rows] == [row.chosen for row in loaded.rows]
    # A baseline that needs no parser but partition(): the reply after the last turn's name, in characters.
    with gzip.open(path, "rt") as stream:
        texts = [json.loads(line) for line in stream]
    for row in loaded.rows:
        text = texts[row.source.line - 1]
        replies = [text[side].rpartition("\n\nAssistant:")[2].strip() for side in ("chosen", "rejected")]
        assert [text_of(row.chosen), text_of(row.rejected)] == replies
    shorter = sum(len(text_of(row.chosen)) < len(text_of(row.rejected)) for row in loaded.rows)
    assert (shorter, len(loaded.rows)) == (974, 1725)  # the shorter reply wins 56.5%


def test_real_replies_that_are_no_text(shared_file: Callable[[str], str]) -> None:
    path = shared_file("pandalm/testset-v1.json")
    columns = {"prompt": "instruction", "chosen": "response1", "rejected": "response2"}
    others = ("annotator1", "annotator2", "annotator3", "input")
    loaded = load_preferences(DataConfig(path=path, columns=columns, ignore=others))
    with open(path, encoding="utf-8") as stream:
        rows = json.load(stream)
    assert len(loaded.rows) + len(loaded.bad) == len(rows) == 999
    kept = [row for row in rows if all(isinstance(row[name], str) and row[name].strip() for name in columns.values())]
    kept = [row for row in kept if row["response1"] != row["response2"]]
    assert [(row.chosen, row.rejected) for row in loaded.rows] == [(row["response1"], row["response2"]) for row in kept]
    assert sum(bad.category == "not text" for bad in loaded.bad) > 0


def test_prompts_keep_the_other_columns_of_their_rows(write_jsonl: Callable[..., str]) -> None:
    path = write_jsonl({"prompt": "a", "answer": "18", "level": 2}, {"prompt": "b"})
    first, second = load_prompts(DataConfig(path=path)).rows
    assert (first.prompt, first.columns) == ("a", {"answer": "18", "level": 2})
    assert (second.prompt, second.columns) == ("b", {})


def test_columns_beside_a_prompt_keep_the_files_names(write_jsonl: Callable[..., str]) -> None:
    path = write_jsonl({"question": "a", "answer": "18", "id": 7})
    [row] = load_prompts(DataConfig(path=path, columns={"prompt": "question", "completion": "answer"})).rows
    assert (row.prompt, row.columns) == ("a", {"answer": "18", "id": 7})


def test_a_preferences_answers_stand_beside_its_prompt(write_jsonl: Callable[..., str]) -> None:
    path = write_jsonl({"prompt": "a", "chosen": " b", "rejected": " c"})
    assert load_prompts(DataConfig(path=path)).rows[0].columns == {"chosen": " b", "rejected": " c"}


def test_a_missing_column_is_told_by_the_files_own_names_with_an_example(write_jsonl: Write) -> None:
    with pytest.raises(UserError) as error:
        load_preferences(DataConfig(path=write_jsonl({"question": "q", "good": "a", "bad": "b"})))
    assert "needs chosen and rejected; has question, good, bad" in error.value.why
    assert "'data.columns={chosen: better, rejected: worse}'" in error.value.fix


def test_data_columns_are_those_of_every_file(write_jsonl: Write) -> None:
    config = DataConfig(path=write_jsonl({"prompt": "p", "completion": "c"}), columns={"chosen": "good"})
    with pytest.raises(UserError) as error:
        load_demonstrations(config)
    assert "no column 'good'" in error.value.why and "applies to every file of the recipe" in error.value.fix
