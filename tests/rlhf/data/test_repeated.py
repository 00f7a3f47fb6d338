"""A prompt that is repeated by its answers is seen once by the model."""

from __future__ import annotations

import pytest

from rlhf.config.schema import DataConfig
from rlhf.data.formats import load_demonstrations, load_preferences, load_prompts
from rlhf.data.report import describe
from tests.rlhf.data.conftest import Write

ASKED = "Which river flows through the town of Bresk?"  # 44 characters


def pairs(path: str, **options: object) -> list[tuple[object, object, object]]:
    rows = load_preferences(DataConfig(path=path, **options)).rows
    return [(row.prompt, row.chosen, row.rejected) for row in rows]


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"prompt": "Sky?", "chosen": "Sky? Blue.", "rejected": "Sky? Red."}, ("Sky?", " Blue.", " Red.")),
        ({"prompt": "Sky?\n", "chosen": "Sky?\nBlue.", "rejected": "Sky?\nRed."}, ("Sky?\n", "Blue.", "Red.")),
        ({"prompt": " Sky? ", "chosen": "Sky?\nBlue.", "rejected": "\nSky? Red."}, (" Sky? ", "\nBlue.", " Red.")),
        ({"prompt": "Sky?", "chosen": "Sky? Blue.", "rejected": "Red."}, ("Sky?", "Sky? Blue.", "Red.")),
        ({"prompt": "Sky?", "chosen": "Sky? Blue.", "rejected": "Sky?"}, ("Sky?", "Sky? Blue.", "Sky?")),
        (
            {"prompt": "Sky?", "system": "Be brief.", "chosen": "Sky? Blue.", "rejected": "Sky? Red."},
            ("Be brief.\n\nSky?", " Blue.", " Red."),
        ),
        (
            {"instruction": "Say", "input": "it", "chosen": "Say\n\nit It.", "rejected": "Say\n\nit No."},
            ("Say\n\nit", " It.", " No."),
        ),
    ],
)
def test_two_answers_that_begin_with_their_prompt_begin_after_it(write_jsonl: Write, row, expected) -> None:
    assert pairs(write_jsonl(row)) == [expected]
    [read] = load_demonstrations(DataConfig(path=write_jsonl(row))).rows
    assert (read.prompt, read.completion) == expected[:2]
    assert [row.prompt for row in load_prompts(DataConfig(path=write_jsonl(row))).rows] == [expected[0]]


def test_a_greeting_that_begins_like_its_prompt_stays_where_other_rows_repeat_none(write_jsonl: Write) -> None:
    others = [{"prompt": f"q{i}", "chosen": "Yes.", "rejected": "No."} for i in range(2)]
    greeting = {"prompt": "Hi", "chosen": "Hi there", "rejected": "Hi!"}
    long = {"prompt": ASKED, "chosen": ASKED + " The Ash.", "rejected": ASKED + " None."}
    path = write_jsonl(*others, greeting, long)
    assert pairs(path)[2:] == [("Hi", "Hi there", "Hi!"), (ASKED, " The Ash.", " None.")]
    assert load_preferences(DataConfig(path=path)).repeated == 1


def test_completions_are_decided_by_most_of_their_file(write_jsonl: Write) -> None:
    greeting, plain = {"prompt": "Hi", "completion": "Hi there"}, {"prompt": "Sky?", "completion": "Blue."}
    again = {"prompt": ASKED, "completion": ASKED + " The Ash."}
    for rows, expected, repeated in (
        ([plain, greeting, plain], ["Blue.", "Hi there", "Blue."], 0),
        ([plain, again], ["Blue.", ASKED + " The Ash."], 0),
        ([again, plain, again], [" The Ash.", "Blue.", " The Ash."], 2),
    ):
        loaded = load_demonstrations(DataConfig(path=write_jsonl(*rows)))
        assert ([row.completion for row in loaded.rows], loaded.repeated) == (expected, repeated)


def test_each_file_of_a_folder_decides_for_itself(tmp_path, write_jsonl: Write) -> None:
    write_jsonl({"prompt": "Sky?", "completion": "Sky? Blue."}, name="a.jsonl")
    write_jsonl(*[{"prompt": f"q{i}", "completion": "Yes."} for i in range(5)], name="b.jsonl")
    assert load_demonstrations(DataConfig(path=str(tmp_path))).rows[0].completion == " Blue."


def test_the_report_counts_them(write_jsonl: Write) -> None:
    path = write_jsonl({"prompt": "Sky?", "completion": "Sky? Blue."}, {"prompt": "Sea?", "completion": "Sea? Green."})
    assert describe(load_demonstrations(DataConfig(path=path)), "demonstrations").split("\n") == [
        "demonstrations: 2 rows",
        "  2 × the prompt at the beginning of an answer: left out",
    ]
