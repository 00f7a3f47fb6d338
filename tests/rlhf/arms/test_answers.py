"""Arms are compared on the same items only."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from rlhf.arms.answers import REFERENCES, Arms, evaluation_rows, read_arms
from rlhf.arms.compare import lint_items
from rlhf.arms.spec import ComparisonConfig
from rlhf.errors import UserError
from tests.rlhf.arms.comparison_files import write_rows

ITEMS = [
    {"prompt": "Where?", "reference": "Here.", "contexts": ["c1", "c2"], "group": "places"},
    {"prompt": [{"role": "user", "content": "When?"}], "references": ["Now.", "At once."], "group": "times"},
    {"prompt": "Which place?", "group": "places"},
]


def read(folder: Path, **arms: list[dict[str, object]]) -> Arms:
    items = str(write_rows(folder / "items.jsonl", ITEMS))
    files = {name: str(write_rows(folder / f"{name}.jsonl", rows)) for name, rows in arms.items()}
    return read_arms(items, files, "base")


def answers(*texts: str, **columns: object) -> list[dict[str, object]]:
    return [{"prompt": item["prompt"], "response": text, **columns} for item, text in zip(ITEMS, texts)]


def test_answers_follow_the_items_whatever_their_order(tmp_path: Path) -> None:
    found = read(tmp_path, other=answers("a", "b ", "c")[::-1], base=answers("x", "y", "z"))
    assert found.names == ("other", "base")
    assert found.base == 1
    assert found.arms[0].first == ("a", "b", "c")
    assert found.items[0].references == ("Here.",)
    assert found.items[1].prompt == "When?"
    assert found.items[1].references == ("Now.", "At once.")
    assert found.arms[0].contexts == (("c1", "c2"), (), ())
    clusters = found.clusters.tolist()
    assert clusters[0] == clusters[2] != clusters[1]


def test_the_answer_column_of_retrieval_is_the_reference(tmp_path: Path) -> None:
    items = [{"prompt": "Where?", "answer": "Here.", "contexts": ["c"]}, {"prompt": "When?", "reference": "Now."}]
    items[1]["answer"] = "Whenever."
    answers = [{"prompt": item["prompt"], "response": "x"} for item in items]
    file, arm = (str(write_rows(tmp_path / name, rows)) for name, rows in (("i.jsonl", items), ("a.jsonl", answers)))
    found = read_arms(file, {"base": arm}, "base")
    assert [item.references for item in found.items] == [("Here.",), ("Now.",)]
    assert [row.answers for row in evaluation_rows(file, REFERENCES)] == [("Here.",), ("Now.",)]


def test_an_arms_own_passages_replace_the_items(tmp_path: Path) -> None:
    found = read(tmp_path, base=answers("a", "b", "c", contexts=["mine"]))
    assert found.arms[0].contexts == (("mine",), ("mine",), ("mine",))


def test_several_answers_per_item(tmp_path: Path) -> None:
    found = read(tmp_path, base=[*answers("a", "b", "c"), *answers("d", "e", "f")])
    assert found.arms[0].answers == (("a", "d"), ("b", "e"), ("c", "f"))
    assert found.arms[0].first == ("a", "b", "c")


def test_a_missing_answer_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"arm other has no answer to 1 of 3 items: .*items.jsonl:3"):
        read(tmp_path, base=answers("a", "b", "c"), other=answers("a", "b"))


def test_an_answer_to_another_prompt_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"arm base answers a prompt that is no item: .*base.jsonl:4"):
        read(tmp_path, base=[*answers("a", "b", "c"), {"prompt": "Why?", "response": "So."}])


def test_another_number_of_tries_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="the number of answers per item differs: base: 1; other: 2"):
        read(tmp_path, base=answers("a", "b", "c"), other=[*answers("a", "b", "c"), *answers("d", "e", "f")])


def test_other_settings_of_sampling_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="the column sampling differs between arms"):
        read(
            tmp_path,
            base=answers("a", "b", "c", sampling={"temperature": 0}),
            other=answers("a", "b", "c", sampling={"temperature": 1}),
        )


def test_repeated_items_and_rows_without_response_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="has no response"):
        read(tmp_path, base=[{"prompt": "Where?", "completion": "x"}])
    items = str(write_rows(tmp_path / "twice.jsonl", [{"prompt": "Where?"}, {"prompt": " Where? "}]))
    with pytest.raises(UserError, match=r"twice.jsonl:1 and .*twice.jsonl:2 have the same prompt"):
        read_arms(items, {"base": items}, "base")


def test_rows_of_the_lint_read_any_answer(tmp_path: Path) -> None:
    rows = [
        {"prompt": "a", "references": ["one", None, "two"], "label": 1},
        {"prompt": "b", "completion": [{"role": "assistant", "content": "three"}]},
        {"prompt": "c", "label": None},
        {"prompt": "d", "references": [], "completion": "four", "label": False},
    ]
    found = evaluation_rows(str(write_rows(tmp_path / "rows.jsonl", rows)), ("references", "completion"))
    assert [(row.prompt, row.answers, row.label, row.location.line) for row in found] == [
        ("a", ("one", "two"), "1", 1),
        ("b", ("three",), "", 2),
        ("c", (), "", 3),
        ("d", ("four",), "False", 4),
    ]


def test_a_required_prompt_is_found_under_its_name_in_the_file(tmp_path: Path) -> None:
    files = {
        name: str(write_rows(tmp_path / f"{name}.jsonl", [{name: "Where?", "answer": "Here."}]))
        for name in ("prompt", "question")
    }
    config = ComparisonConfig(items=files["question"], arms={"base": "b"}, base="base", required=("prompt", "question"))
    assert lint_items(config) == []
    [finding] = lint_items(replace(config, items=files["prompt"]))
    assert finding.text == "no question"


@pytest.mark.parametrize("column", ["messages", "conversations"])
def test_answers_of_trained_conversations_leak(tmp_path: Path, column: str) -> None:
    said = "The museum opens at ten and closes at five."
    ours, theirs = (("role", "content"), ("from", "value")) if column == "messages" else (("from", "value"),) * 2
    turns = [{ours[0]: "user", ours[1]: "Hours?"}, {theirs[0]: "assistant", theirs[1]: said}]
    turns.append({ours[0]: "user", ours[1]: "Thanks."})
    items = str(write_rows(tmp_path / "items.jsonl", [{"prompt": "When is it open?", "reference": said}]))
    train = str(write_rows(tmp_path / "train.jsonl", [{column: turns}]))
    [finding] = lint_items(ComparisonConfig(items=items, arms={"base": "b"}, base="base", train=(train,)))
    assert str(finding).endswith(f"answer as in {train}:1 (similarity 1.00)")


def test_group_0_is_a_group(tmp_path: Path) -> None:
    rows = [{"prompt": str(i), "group": group} for i, group in enumerate([0, 0, False, False, None, None])]
    items = str(write_rows(tmp_path / "items.jsonl", rows))
    arm = str(write_rows(tmp_path / "a.jsonl", [{"prompt": row["prompt"], "response": "x"} for row in rows]))
    assert len({*read_arms(items, {"base": arm}, "base").clusters.tolist()}) == 4


def test_scores_of_rows_are_averaged_over_an_items_answers(tmp_path: Path) -> None:
    rows = [
        *answers("a", "b", "c", scores={"reward": 1, "turns": 4}),
        *answers("d", "e", "f", scores={"reward": 0.5, "turns": None}),
    ]
    found = read(tmp_path, base=rows)
    assert found.arms[0].scores == ({"reward": 0.75, "turns": 4.0},) * 3
    assert read(tmp_path, base=answers("a", "b", "c")).arms[0].scores == ({}, {}, {})


@pytest.mark.parametrize("scores", [[1.0], {"reward": "high"}, {"reward": float("inf")}, {"reward": 10**400}, 3])
def test_scores_that_are_no_numbers_are_refused(tmp_path: Path, scores: object) -> None:
    with pytest.raises(UserError, match=r"base.jsonl:1: (scores is no object of numbers|not JSON)"):
        read(tmp_path, base=answers("a", "b", "c", scores=scores))
