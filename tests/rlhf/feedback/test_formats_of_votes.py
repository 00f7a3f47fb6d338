"""Rows of every format as items and votes, written by hand after each format's own documentation."""

from __future__ import annotations

import gzip
import json
from collections import Counter
from pathlib import Path

import pytest

from rlhf.errors import UserError
from rlhf.feedback.formats.judged import LONGEST_ALIAS, alias, ordered
from rlhf.feedback.formats.reading import FORMATS, Feedback, read_feedback
from rlhf.feedback.records import Answer, Choice, Item, Vote
from rlhf.records import Message

SHARED = Path(__file__).parents[4] / "shared" / "data"

PANDALM = {
    "idx": 7,
    "motivation_app": "Quora",
    "cmp_key": "llama-7b_opt-7b",
    "instruction": "Is it odd?",
    "input": "3",
    "response1": True,
    "response2": "",
    "annotator1": 1,
    "annotator2": 0,
    "annotator3": 2,
}
SUMMARY = {
    "info": {"id": "t3_1", "post": "My car was hit.", "title": "Car accident", "subreddit": "legaladvice"},
    "summaries": [
        {"text": " a car", "policy": "sup4", "note": "Which car?"},
        {"text": " it was hit", "policy": "ref", "note": None},
    ],
    "choice": 1,
    "worker": "ikNmucwunMnYJCQpnq6ZYb57OW7NiD",
    "batch": "batch9",
    "split": "train",
    "extra": {"confidence": 8},
}
TASK = {
    "id": 1,
    "data": {"prompt": "Capital of France?", "answer1": "Paris", "answer2": "Lyon", "topic": "geography"},
    "annotations": [
        {
            "id": 11,
            "completed_by": 3,
            "was_cancelled": False,
            "lead_time": 12.5,
            "created_at": "1970-01-02T00:00:00.000000Z",
            "result": [{"type": "pairwise", "to_name": "answer1,answer2", "value": {"selected": "left"}}],
        },
        {
            "id": 12,
            "completed_by": {"id": 4, "email": "ann@example.org"},
            "result": [{"type": "pairwise", "to_name": "answer1,answer2", "value": {"selected": "right"}}],
        },
        {"id": 13, "completed_by": 5, "was_cancelled": True, "result": []},
        {"id": 14, "completed_by": 6, "was_cancelled": False, "result": []},
    ],
}
WEBGPT = {
    "question": {"dataset": "eli5", "id": "q1", "full_text": "Why is the sky blue?"},
    "quotes_0": {"title": ["Sky"], "extract": ["Rayleigh"]},
    "answer_0": "Scattering [1].",
    "tokens_0": {"prefix": [1], "completion": [2]},
    "score_0": -1.0,
    "quotes_1": {"title": [], "extract": []},
    "answer_1": "Blue light scatters more.",
    "tokens_1": {"prefix": [1], "completion": [3]},
    "score_1": 1.0,
}
FINEGRAINED = {
    "question": "When?",
    "passages": [["Title", "Text"]],
    **{f"prediction {i}": f"answer {i}" for i in range(1, 5)},
    "preference": [0, 1, 2, 1, 9, 2],
}
BEST_OF = {"query": "Once", "sample0": " a", "sample1": " b", "sample2": " c", "sample3": " d", "best": 1}


def read(folder: Path, format: str, *rows: object) -> Feedback:
    """The feedback in a JSONL file of these rows."""
    file = folder / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return read_feedback(str(file), format)


def only(feedback: Feedback) -> tuple[Item, Vote]:
    """The item and the vote of a file with one of each."""
    [item], [vote] = feedback.items, feedback.votes
    assert vote.item == item.id
    return item, vote


def winner(feedback: Feedback) -> str:
    """The text of the answer that the only vote prefers."""
    item, vote = only(feedback)
    assert vote.choice.strength
    return item.answers[vote.choice.strength < 0].text


def test_pandalm(tmp_path: Path) -> None:
    feedback = read(tmp_path, "pandalm", PANDALM)
    [item] = feedback.items
    assert item.prompt == "Is it odd?\n\n3"
    assert item.answers == (Answer(text="True", policy="llama-7b"), Answer(text="", policy="opt-7b"))
    assert item.extra == {"idx": 7, "motivation_app": "Quora"}
    assert item.source == "rows.jsonl:1"
    assert [(vote.rater, vote.choice) for vote in feedback.votes] == [
        ("pandalm:annotator1", Choice.FIRST_SLIGHTLY),
        ("pandalm:annotator2", Choice.TIE),
        ("pandalm:annotator3", Choice.SECOND_SLIGHTLY),
    ]


def test_a_label_that_is_none_is_counted_and_the_others_are_kept(tmp_path: Path) -> None:
    feedback = read(tmp_path, "pandalm", {**PANDALM, "annotator2": 3, "annotator3": True})
    assert [vote.rater for vote in feedback.votes] == ["pandalm:annotator1"]
    assert [(row.category, row.source.line) for row in feedback.bad] == [("not a label", 1), ("not a label", 1)]


def test_finegrained(tmp_path: Path) -> None:
    feedback = read(tmp_path, "finegrained", FINEGRAINED)
    pairs = [tuple(answer.text[-1] for answer in item.answers) for item in feedback.items]
    assert pairs == [("1", "2"), ("1", "3"), ("1", "4"), ("2", "3"), ("2", "4"), ("3", "4")]
    assert [vote.choice.strength for vote in feedback.votes] == [0, 1, -1, 1, -1]  # the fifth of six is no label
    assert [row.reason for row in feedback.bad] == [
        "not a label: prediction 2 against prediction 4 is 9, not 0, 1 or 2"
    ]
    assert len({item.group for item in feedback.items}) == 1
    assert feedback.items[0].prompt == "When?"
    assert feedback.items[0].extra == {"passages": [["Title", "Text"]]}


def test_openai_comparison(tmp_path: Path) -> None:
    item, vote = only(read(tmp_path, "openai", SUMMARY))
    assert item.prompt == "Car accident\n\nMy car was hit."
    assert item.answers == (Answer(text=" a car", policy="sup4"), Answer(text=" it was hit", policy="ref"))
    assert item.group == "t3_1"
    assert item.extra["batch"] == "batch9"
    assert item.extra["extra"] == {"confidence": 8}
    assert item.extra["info"] == {"id": "t3_1", "subreddit": "legaladvice"}
    assert vote.rater == "openai:ikNmucwunMnYJCQpnq6ZYb57OW7NiD"
    assert (vote.choice, vote.comment) == (Choice.SECOND_MUCH, "1: Which car?")


@pytest.mark.parametrize(
    ("choice", "confidence", "expected"),
    [
        (0, 1, Choice.FIRST_MUCH),
        (0, 2, Choice.FIRST_MUCH),
        (0, 3, Choice.FIRST_SLIGHTLY),
        (0, 9, Choice.FIRST_SLIGHTLY),
        (1, 7, Choice.SECOND_SLIGHTLY),
        (1, 9, Choice.SECOND_MUCH),
        (1, 1, Choice.SECOND_SLIGHTLY),
        (1, None, Choice.SECOND_SLIGHTLY),
    ],
)
def test_the_choice_of_a_summary_wins_whatever_its_confidence(
    tmp_path: Path, choice: int, confidence: int | None, expected: Choice
) -> None:
    row = {**SUMMARY, "choice": choice, "extra": {"confidence": confidence}}
    assert only(read(tmp_path, "openai", row))[1].choice is expected


def test_a_news_article_is_the_prompt_of_its_summaries(tmp_path: Path) -> None:
    row = {**SUMMARY, "info": {"id": "167f", "site": "dailymail", "title": "Sent off", "article": "Red card."}}
    assert only(read(tmp_path, "openai", row))[0].prompt == "Sent off\n\nRed card."


@pytest.mark.parametrize(
    ("score", "expected"),
    [(-1.0, Choice.SECOND_MUCH), (0.5, Choice.FIRST_SLIGHTLY), (0.0, Choice.TIE), (1.0, Choice.FIRST_MUCH)],
)
def test_webgpt(tmp_path: Path, score: float, expected: Choice) -> None:
    item, vote = only(read(tmp_path, "webgpt", {**WEBGPT, "score_0": score, "score_1": -score}))
    assert item.prompt == "Why is the sky blue?"
    assert [answer.text for answer in item.answers] == ["Scattering [1].", "Blue light scatters more."]
    assert item.extra["question"] == {"dataset": "eli5", "id": "q1"}
    assert "tokens_0" not in item.extra
    assert vote.choice is expected


def test_best_of_four_is_three_comparisons(tmp_path: Path) -> None:
    feedback = read(tmp_path, "best-of", BEST_OF)
    assert [[answer.text for answer in item.answers] for item in feedback.items] == [
        [" a", " b"],
        [" b", " c"],
        [" b", " d"],
    ]
    assert [vote.choice.strength for vote in feedback.votes] == [-1, 1, 1]


def test_label_studio(tmp_path: Path) -> None:
    feedback = read(tmp_path, "label-studio", TASK)
    [item] = feedback.items
    assert (item.prompt, [answer.text for answer in item.answers]) == ("Capital of France?", ["Paris", "Lyon"])
    assert item.extra == {"task": 1, "topic": "geography"}
    assert [(vote.rater, vote.choice) for vote in feedback.votes] == [
        ("label-studio:3", Choice.FIRST_SLIGHTLY),
        ("label-studio:4", Choice.SECOND_SLIGHTLY),
        ("label-studio:5", Choice.SKIP),
    ]
    assert (feedback.votes[0].seconds, feedback.votes[0].time) == (12.5, 86400.0)
    assert [row.reason for row in feedback.bad] == ["not a label: an annotation selects None, not left or right"]
    assert "ann@example.org" not in repr(feedback)


def test_label_studio_may_show_the_answers_in_another_order_to_each_rater(tmp_path: Path) -> None:
    def annotation(number: int, names: str, selected: str) -> dict[str, object]:
        result = [{"type": "pairwise", "to_name": names, "value": {"selected": selected}}]
        return {"completed_by": number, "result": result, "lead_time": 10**400 if number == 1 else 3}

    annotations = [annotation(1, "a,b", "left"), annotation(2, "b,a", "right"), annotation(3, "b,a", "left")]
    feedback = read(tmp_path, "label-studio", {"id": 3, "data": {"a": "A", "b": "B"}, "annotations": annotations})
    assert [vote.choice.strength for vote in feedback.votes] == [1, 1, -1]
    assert [vote.seconds for vote in feedback.votes] == [None, 3.0, 3.0]


def test_label_studio_names_the_left_answer_first(tmp_path: Path) -> None:
    data = {"second": "B", "first": "A"}
    result = [{"type": "pairwise", "to_name": "first,second", "value": {"selected": "left"}}]
    feedback = read(
        tmp_path, "label-studio", {"id": 2, "data": data, "annotations": [{"completed_by": 1, "result": result}]}
    )
    assert winner(feedback) == "A"
    assert only(feedback)[0].prompt == ""


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "Two?", "chosen": " 2", "rejected": " 3"},
        {"prompt": [{"role": "user", "content": "Two?"}], "chosen": " 2", "rejected": " 3"},
        {"chosen": "Two? 2", "rejected": "Two? 3"},
        {
            "chosen": [{"role": "user", "content": "Two?"}, {"role": "assistant", "content": " 2"}],
            "rejected": [{"role": "user", "content": "Two?"}, {"role": "assistant", "content": " 3"}],
        },
    ],
)
def test_trl_preferences(tmp_path: Path, row: dict[str, object]) -> None:
    feedback = read(tmp_path, "trl", row)
    prompt = only(feedback)[0].prompt
    assert prompt in ("Two?", (Message("user", "Two?"),))
    assert winner(feedback) == " 2"
    assert only(feedback)[1].rater == "trl:rows"


def test_other_columns_of_a_preference_are_kept(tmp_path: Path) -> None:
    row = {"prompt": "Two?", "chosen": " 2", "rejected": " 3", "margin": 1.5, "winner": "x", "topic": {"a": 1}}
    assert only(read(tmp_path, "trl", row))[0].extra == {"margin": 1.5, "winner": "x", "topic": {"a": 1}}


def test_rows_that_disagree_are_two_votes_on_one_item(tmp_path: Path) -> None:
    one = {"prompt": "Two?", "chosen": " 2", "rejected": " 3"}
    other = {"prompt": "Two?", "chosen": " 3", "rejected": " 2"}
    feedback = read(tmp_path, "trl", one, other, one)
    assert len(feedback.items) == 1
    assert Counter(vote.choice.strength for vote in feedback.votes) in (Counter({1: 2, -1: 1}), Counter({-1: 2, 1: 1}))
    assert [vote.rater for vote in feedback.votes] == ["trl:rows", "trl:rows:2", "trl:rows:3"]
    assert len({vote.id for vote in feedback.votes}) == 3
    assert not any(vote.is_repeat for vote in feedback.votes)


def test_a_second_vote_of_a_named_rater_is_a_repeat(tmp_path: Path) -> None:
    feedback = read(tmp_path, "openai", SUMMARY, {**SUMMARY, "choice": 0}, SUMMARY)
    assert [vote.is_repeat for vote in feedback.votes] == [False, True]
    assert [(row.source.line, row.category) for row in feedback.bad] == [(3, "a third vote")]
    assert len({vote.id for vote in feedback.votes}) == 2


def test_answers_of_chosen_and_rejected_get_an_order_that_tells_nothing() -> None:
    texts = [Answer(text=str(i)) for i in range(200)]
    exchanged = [ordered(one, other)[1] for one, other in zip(texts[::2], texts[1::2], strict=True)]
    assert 30 < sum(exchanged) < 70  # of 100: four standard deviations of a coin
    one, other = texts[:2]
    assert ordered(one, other)[0] == ordered(other, one)[0]
    assert ordered(one, other)[1] != ordered(other, one)[1]


def test_a_tool_call_cannot_be_shown_and_is_a_bad_row(tmp_path: Path) -> None:
    call = {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "f", "arguments": {}}}]}
    asked = {"role": "user", "content": "Two?"}
    good = {"prompt": [asked], "chosen": [{"role": "assistant", "content": "2"}], "rejected": "3"}
    feedback = read(tmp_path, "trl", good, {**good, "chosen": [call]})
    assert [(row.source.line, row.reason) for row in feedback.bad] == [(2, "more than text: chosen has tool_calls")]
    assert len(feedback.items) == 1


def test_hh_transcripts(tmp_path: Path) -> None:
    begun = "\n\nHuman: Hi\n\nAssistant: Hello\n\nHuman: Two?\n\nAssistant: "
    feedback = read(tmp_path, "hh", {"chosen": f"{begun}2", "rejected": f"{begun}3"})
    item, vote = only(feedback)
    assert item.prompt == (Message("user", "Hi"), Message("assistant", "Hello"), Message("user", "Two?"))
    assert winner(feedback) == "2"
    assert vote.rater == "hh:rows"


def test_unpaired_rows_are_thumbs(tmp_path: Path) -> None:
    good = {"prompt": "Two?", "completion": " 2", "label": True}
    feedback = read(tmp_path, "trl-unpaired", good, good, {**good, "completion": " 3", "label": False})
    assert [(thumb.answer.text, thumb.is_good) for thumb in feedback.thumbs] == [
        (" 2", True),
        (" 2", True),
        (" 3", False),
    ]
    assert len({thumb.id for thumb in feedback.thumbs}) == 3


def test_an_unpaired_label_is_true_or_false(tmp_path: Path) -> None:
    good = {"prompt": "Two?", "completion": " 2", "label": True}
    feedback = read(tmp_path, "trl-unpaired", good, {**good, "label": 1})
    assert len(feedback.thumbs) == 1
    assert [(row.source.line, row.category) for row in feedback.bad] == [(2, "not a label")]


BAD_ROWS = [
    ("pandalm", {**PANDALM, "instruction": "", "input": ""}, "empty instruction"),
    ("pandalm", {**PANDALM, "response1": None}, "not text: response1 is None"),
    ("pandalm", {"instruction": "x", "response1": "a", "response2": "b"}, "columns missing: needs annotator1"),
    ("finegrained", {**FINEGRAINED, "preference": [1, 2]}, "not 6 judgements: preference is [1, 2]"),
    ("finegrained", {"question": "When?"}, "columns missing: needs prediction 1"),
    ("openai", {**SUMMARY, "choice": 2}, "not a label: choice is 2"),
    ("openai", {**SUMMARY, "choice": True}, "not a label: choice is True"),
    ("openai", {**SUMMARY, "summaries": [{"text": "a"}]}, "not two summaries"),
    ("openai", {**SUMMARY, "info": None}, "not an object: info is None"),
    ("webgpt", {**WEBGPT, "score_1": 0.5}, "not a label: score_0 is -1 and score_1 is 0.5, which do not sum to 0"),
    ("webgpt", {**WEBGPT, "score_1": "1"}, "not a label: score_1 is '1'"),
    ("best-of", {**BEST_OF, "best": 4}, "not a label: best is 4, and there are 4 samples"),
    ("best-of", {**BEST_OF, "sample0": [464, 1]}, "token ids"),
    ("label-studio", {"id": 1, "data": {"a": 1}, "annotations": []}, "columns missing: needs two answers in data"),
    ("label-studio", {"id": 1, "data": TASK["data"]}, "columns missing: needs annotations"),
    ("trl", {"prompt": "Two?", "chosen": "2"}, "columns missing: needs chosen and rejected"),
    ("trl", {"prompt": "Two?", "chosen": "2", "rejected": "2"}, "chosen equals rejected"),
]
GOOD_ROWS = {
    "pandalm": PANDALM,
    "finegrained": FINEGRAINED,
    "openai": SUMMARY,
    "webgpt": WEBGPT,
    "best-of": BEST_OF,
    "label-studio": TASK,
    "trl": {"prompt": "Two?", "chosen": " 2", "rejected": " 3"},
}


@pytest.mark.parametrize(("format", "row", "reason"), BAD_ROWS, ids=str)
def test_a_bad_row_is_counted_with_its_line(tmp_path: Path, format: str, row: object, reason: str) -> None:
    good = GOOD_ROWS[format]
    alone = read(tmp_path, format, good)
    feedback = read(tmp_path, format, good, row)
    [found] = [bad for bad in feedback.bad if bad.source.line == 2]
    assert found.reason.startswith(reason)
    assert (feedback.items, feedback.votes) == (alone.items, alone.votes)
    assert feedback.files[0].rows == 2


@pytest.mark.parametrize("format", sorted(FORMATS))
def test_a_file_of_another_format_is_refused(tmp_path: Path, format: str) -> None:
    with pytest.raises(UserError, match="columns|not |usable row"):
        read(tmp_path, format, {"name": "value"})


def test_an_unknown_format_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="'csv' is no format of feedback"):
        read(tmp_path, "csv", PANDALM)


def test_files_may_be_packed_and_lists(tmp_path: Path) -> None:
    file = tmp_path / "rows.json.gz"
    file.write_bytes(gzip.compress(json.dumps([PANDALM]).encode()))
    assert len(read_feedback(str(file), "pandalm").votes) == 3


@pytest.mark.parametrize(
    ("name", "expected"),
    [("annotator1", "pandalm:annotator1"), ("two words", "pandalm:two-words"), ("é", "pandalm:-")],
)
def test_an_alias_has_plain_characters(name: str, expected: str) -> None:
    assert alias("pandalm", name) == expected


@pytest.mark.parametrize("name", ["ann@example.org", "x" * 60, ""])
def test_an_alias_holds_no_address_and_is_short(name: str) -> None:
    found = alias("label-studio", name)
    assert len(found) <= LONGEST_ALIAS
    assert "ann" not in found
    assert found == alias("label-studio", name)
    assert found != alias("label-studio", name + "y")


def shared(name: str) -> str:
    """Path of a real data file, which exists beside the repository on some machines only."""
    if not (SHARED / name).exists():
        pytest.skip(f"the real data file {name} is not beside this repository")
    return str(SHARED / name)


def test_pandalm_test_set_has_999_comparisons_with_3_votes_each() -> None:
    feedback = read_feedback(shared("pandalm/testset-v1.json"), "pandalm")
    assert (len(feedback.items), len(feedback.votes), feedback.bad) == (999, 2997, ())
    by_item: dict[str, set[Choice]] = {}
    for vote in feedback.votes:
        by_item.setdefault(vote.item, set()).add(vote.choice)
    assert sum(len(choices) == 1 for choices in by_item.values()) == 879
    assert sum(not answer.text for item in feedback.items for answer in item.answers) > 0


def test_finegrained_dev_set_has_3000_pairs_of_which_2616_are_decided() -> None:
    feedback = read_feedback(shared("finegrained-rlhf/dev_feedback.json"), "finegrained")
    assert (len(feedback.items), len(feedback.votes), feedback.bad) == (3000, 3000, ())
    assert sum(vote.choice is not Choice.TIE for vote in feedback.votes) == 2616
    assert len({item.group for item in feedback.items}) == 500


def test_hh_harmless_rows_are_used_or_counted() -> None:
    feedback = read_feedback(shared("hh-rlhf/harmless-base.jsonl.gz"), "hh")
    assert (len(feedback.items), len(feedback.bad)) == (1725, 9)
    assert all(isinstance(item.prompt, tuple) and item.prompt[-1].role == "user" for item in feedback.items)
