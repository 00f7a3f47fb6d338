"""A project as training data: what becomes a row, what is counted, and which keys of a recipe are refused."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Sequence
from pathlib import Path

import pytest

from rlhf.config.schema import DataConfig
from rlhf.data.formats import load_labelled as load_labelled_file
from rlhf.data.formats import load_preferences as load_file
from rlhf.errors import UserError
from rlhf.feedback.aggregate import Ties
from rlhf.feedback.items import make_item
from rlhf.feedback.project import (
    aggregate,
    is_project,
    load_demonstrations,
    load_labelled,
    load_preferences,
    load_prompts,
)
from rlhf.feedback.records import Answer, Choice, Item, Purpose, Thumb, Vote
from rlhf.feedback.snapshot import read_snapshot
from rlhf.feedback.store import Store
from rlhf.feedback.training_rows import labelled_rows, preference_rows
from rlhf.records import Message
from rlhf.storage.jsonl import to_line

FIRST, SECOND, TIE, BAD = Choice.FIRST_MUCH, Choice.SECOND_SLIGHTLY, Choice.TIE, Choice.BOTH_BAD


def question(number: int, **fields: object) -> Item:
    """An item with answers "yes" and "no" of two policies."""
    answers = Answer(text="yes", policy="sft", seed=7, sampling={"temperature": 0.7}), Answer(text="no", policy="ppo")
    return make_item(f"Question {number}?", answers, **fields)  # type: ignore[arg-type]


def make(path: Path, *judged: tuple[Item, Sequence[Choice]], **more: Vote) -> Path:
    """A project in which rater-1, rater-2, ... made these choices on each item, by version 2 of the guidelines."""
    with Store.create(path) as store:
        store.add_guideline("# First")
        store.add_guideline("# Second")
        store.add_items([item for item, _ in judged])
        for number in range(1, 6):
            store.add_rater(f"rater-{number}")
        store.add_rater("judge", is_adjudicator=True)
        votes = [
            Vote(id=f"{item.id}-{number}", item=item.id, rater=f"rater-{number}", choice=choice, guideline=2)
            for item, choices in judged
            for number, choice in enumerate(choices, start=1)
        ]
        store.import_votes([*votes, *more.values()])
    return path


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """One clear preference each way, a tie, an item whose answers are both bad, one without votes, and a gold item."""
    return make(
        tmp_path / "votes.db",
        (question(0), [FIRST, FIRST, SECOND]),
        (question(1), [SECOND, SECOND, SECOND]),
        (question(2), [TIE, TIE, FIRST]),
        (question(3), [BAD, BAD, FIRST]),
        (question(4), []),
        (question(5, purpose=Purpose.GOLD, gold=FIRST), [SECOND, SECOND, SECOND]),
    )


def test_a_project_is_recognised_by_its_mark(project: Path, tmp_path: Path) -> None:
    other = sqlite3.connect(tmp_path / "other.db")
    other.execute("CREATE TABLE t (x)")
    other.close()
    (tmp_path / "rows.jsonl").write_text("{}\n")
    (tmp_path / "empty.db").write_bytes(b"")
    (tmp_path / "damaged.db").write_bytes(b"SQLite format 3\0" + b"x" * 4096)
    assert is_project(str(project))
    assert is_project(project)
    for name in ("other.db", "rows.jsonl", "empty.db", "damaged.db", "missing.db", ".", "x" * 5000, "\0"):
        assert not is_project(str(tmp_path / name) if name != "\0" else name)


def test_votes_become_preferences_by_majority(project: Path) -> None:
    loaded = load_preferences(DataConfig(preferences=str(project)))
    assert [(row.prompt, row.chosen, row.rejected) for row in loaded.rows] == [
        ("Question 0?", "yes", "no"),
        ("Question 1?", "no", "yes"),
    ]
    # mean strengths (2 + 2 − 1)/3 and 1 in favour of the winner, halved
    assert [row.margin for row in loaded.rows] == pytest.approx([0.5, 0.5])
    assert [str(row.source) for row in loaded.rows] == [f"{project}:1", f"{project}:2"]
    assert [(file.file, file.rows) for file in loaded.files] == [(str(project), 15)]
    head, ties, left_out = loaded.remarks
    assert head == "15 votes of 3 raters, on 5 items to label; aggregated by majority"
    assert ties == "1 tie, dropped"
    assert "3 × other purpose" in left_out


def test_the_rule_of_the_recipe_decides(tmp_path: Path) -> None:
    one = Vote(id="a", item=question(0).id, rater="rater-1", choice=FIRST)
    path = make(tmp_path / "votes.db", (question(0), []), a=one)
    majority, strengths = (
        load_preferences(DataConfig(preferences=str(path), aggregation=rule)).rows[0]
        for rule in ("majority", "bradley_terry")
    )
    assert majority.margin == 1.0  # much better
    assert strengths.margin == pytest.approx(1.0426, abs=1e-4)  # 1 − σ(1.0426) = 1.0426/4: slope of ridge ½
    assert load_preferences(DataConfig(preferences=str(path), ignore=("margin",))).rows[0].margin == 0.0


def test_ties_in_both_orders_are_marked(project: Path) -> None:
    rows = load_preferences(DataConfig(preferences=str(project), ties="both_orders")).rows
    assert [(row.chosen, row.margin, row.is_tie) for row in rows[2:]] == [("yes", 0.0, True), ("no", 0.0, True)]
    assert [row.is_tie for row in rows[:2]] == [False, False]


def test_suspended_raters_and_adjudications_change_the_preference_and_the_digest(tmp_path: Path) -> None:
    path = make(tmp_path / "votes.db", (question(0), [FIRST, SECOND, SECOND]), (question(1), [FIRST]))
    config = DataConfig(preferences=str(path))
    before = load_preferences(config)
    assert before.rows[0].chosen == "no"
    with Store.open(path) as store:
        store.suspend("rater-3", "too fast")
        store.import_votes([Vote(id="j", item=question(1).id, rater="judge", choice=SECOND, is_adjudication=True)])
        store.suspend("rater-2", "too fast")
    after = load_preferences(config)
    assert [row.chosen for row in after.rows] == ["yes", "no"]
    assert after.files[0].digest != before.files[0].digest
    assert "2 of them suspended" in after.remarks[0]


def test_what_is_not_trained_on_leaves_the_digest_as_it_was(tmp_path: Path) -> None:
    path = make(tmp_path / "votes.db", (question(0), [FIRST, SECOND, SECOND]))
    config = DataConfig(preferences=str(path), ignore=("margin",))
    before = load_preferences(config)
    with Store.open(path) as store:
        store.add_items([question(1)])
        store.add_thumb(Thumb(id="t", prompt="Q?", answer=Answer(text="yes"), is_good=True))
    assert load_preferences(config).files == before.files
    with Store.open(path) as store:
        store.import_votes([Vote(id="v", item=question(1).id, rater="rater-1", choice=SECOND)])
    assert load_preferences(config).files[0].digest != before.files[0].digest


def test_answers_that_cannot_be_trained_on_are_counted(tmp_path: Path) -> None:
    empty = make_item("Q?", (Answer(text="yes"), Answer(text=" ")))
    same = make_item("R?", (Answer(text="yes", policy="a"), Answer(text="yes", policy="b")))
    blank = make_item("", (Answer(text="yes"), Answer(text="no")))
    tools = make_item("S?", (Answer(text="yes"), Answer(text="no")), extra={"tools": 5})
    path = make(
        tmp_path / "votes.db", (question(0), [FIRST]), *((item, [FIRST]) for item in (empty, same, blank, tools))
    )
    loaded = load_preferences(DataConfig(preferences=str(path)))
    assert len(loaded.rows) == 1
    assert [(row.source.line, row.category) for row in loaded.bad] == [
        (2, "empty rejected"),
        (3, "chosen equals rejected"),
        (4, "empty prompt"),
        (5, "not tools"),
    ]


def test_variables_of_chat_templates_survive(tmp_path: Path) -> None:
    tools = [{"type": "function", "function": {"name": "f"}}]
    item = make_item((Message("user", "Q?"),), (Answer(text="yes"), Answer(text="no")), extra={"tools": tools})
    path = make(tmp_path / "votes.db", (item, [FIRST]))
    [row] = load_preferences(DataConfig(preferences=str(path))).rows
    assert (row.prompt, row.variables) == ((Message("user", "Q?"),), {"tools": tools})


def test_a_project_without_votes_is_refused(tmp_path: Path) -> None:
    path = make(tmp_path / "votes.db", (question(0), []))
    with pytest.raises(UserError, match="no preference in .*votes.db"):
        load_preferences(DataConfig(preferences=str(path)))


def test_demonstrations_are_the_preferred_answers_and_prompts_come_once(project: Path) -> None:
    config = DataConfig(path=str(project))
    assert [(row.prompt, row.completion) for row in load_demonstrations(config).rows] == [
        ("Question 0?", "yes"),
        ("Question 1?", "no"),
    ]
    with Store.open(project) as store:
        store.add_items([make_item("Question 0?", (Answer(text="maybe"), Answer(text="no")))])
    assert [row.prompt for row in load_prompts(config).rows] == [f"Question {i}?" for i in range(5)]


@pytest.mark.parametrize(
    ("settings", "key"),
    [
        ({"columns": {"prompt": "q"}}, "data.columns"),
        ({"labels": {"1": "chosen"}}, "data.labels"),
        ({"ignore": ("topic",)}, "data.ignore"),
        ({"max_rows": 5}, "data.max_rows"),
        ({"format": "jsonl"}, "data.format"),
    ],
)
def test_keys_that_say_how_to_read_files_are_refused(project: Path, settings: dict[str, object], key: str) -> None:
    with pytest.raises(UserError, match=f"{key} has no effect on the feedback project"):
        load_preferences(DataConfig(preferences=str(project), **settings))  # type: ignore[arg-type]
    beside = DataConfig(preferences=str(project), demonstrations="rows.jsonl", **settings)  # type: ignore[arg-type]
    assert len(load_preferences(beside).rows) == 2  # they may be meant for the other file


@pytest.mark.parametrize(("key", "value"), [("aggregation", "majority"), ("ties", "drop")])
def test_keys_of_projects_are_refused_for_files(tmp_path: Path, project: Path, key: str, value: str) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps({"prompt": "Q?", "chosen": " a", "rejected": " b"}) + "\n")
    with pytest.raises(UserError, match=f"data.{key} = {value} has no effect"):
        load_preferences(DataConfig(preferences=str(file), **{key: value}))  # type: ignore[arg-type]
    beside = DataConfig(preferences=str(file), demonstrations=str(project), **{key: value})  # type: ignore[arg-type]
    assert len(load_preferences(beside).rows) == 1


def write(path: Path, rows: Sequence[dict[str, object]]) -> str:
    """A JSONL file of these rows."""
    path.write_text("".join(map(to_line, rows)), encoding="utf-8")
    return str(path)


@pytest.mark.parametrize("ties", list(Ties))
def test_exported_preferences_train_as_the_project_does(project: Path, tmp_path: Path, ties: Ties) -> None:
    dialogue = (
        Message("system", "Be kind"),
        Message("user", "Hi"),
        Message("assistant", "Hello"),
        Message("user", "?"),
    )
    with Store.open(project) as store:
        item = make_item(dialogue, (Answer(text="no"), Answer(text="yes")))
        store.add_items([item])
        store.import_votes([Vote(id="x", item=item.id, rater="rater-1", choice=FIRST)])
    snapshot = read_snapshot(project)
    rows = list(preference_rows(snapshot, aggregate(snapshot, "majority", ties), "majority"))
    from_file = load_file(DataConfig(preferences=write(tmp_path / "rows.jsonl", rows))).rows
    from_project = load_preferences(DataConfig(preferences=str(project), ties=ties.value)).rows

    def content(row):
        chosen, rejected = (side if isinstance(side, str) else side.content for side in (row.chosen, row.rejected))
        return row.prompt, chosen, rejected, row.margin

    assert [content(row) for row in from_file] == [content(row) for row in from_project]
    assert len(from_file) == (3 if ties is Ties.DROP else 5)


def test_every_preference_says_where_it_came_from(project: Path) -> None:
    snapshot = read_snapshot(project)
    rows = list(preference_rows(snapshot, aggregate(snapshot, "majority", Ties.DROP), "majority"))
    assert rows[1] == {
        "prompt": "Question 1?",
        "chosen": "no",
        "rejected": "yes",
        "margin": 0.5,
        "provenance": {
            "project": snapshot.digest,
            "item": question(1).id,
            "round": "",
            "source": "",
            "group": "",
            "policies": ["ppo", "sft"],
            "seeds": [None, 7],
            "sampling": [{}, {"temperature": 0.7}],
            "judged_by": ["rater-1", "rater-2", "rater-3"],
            "guidelines": [2],
            "judgements": 3,
            "aggregation": "majority",
            "probability": 1.0,
            "is_tie": False,
        },
    }


def test_unpaired_rows_are_thumbs_and_answers_that_are_both_bad(project: Path, tmp_path: Path) -> None:
    with Store.open(project) as store:
        hello = Answer(text="Hello", policy="v1", seed=3)
        store.add_thumb(Thumb(id="t1", prompt="Hi", answer=hello, is_good=True, comment="private"))
        store.add_thumb(Thumb(id="t2", prompt=(Message("user", "Hi"),), answer=hello, is_good=False))
        bad = Vote(id="j", item=question(0).id, rater="judge", choice=BAD, is_adjudication=True)
        good = Vote(id="k", item=question(3).id, rater="judge", choice=FIRST, is_adjudication=True)
        store.import_votes([bad, good])
    snapshot = read_snapshot(project)
    rows = list(labelled_rows(snapshot))
    loaded = load_labelled_file(DataConfig(preferences=write(tmp_path / "rows.jsonl", rows))).rows
    assert [(row.prompt, row.is_good) for row in loaded] == [
        ("Hi", True),
        ((Message("user", "Hi"),), False),
        ("Question 0?", False),  # the adjudicator found both answers bad
        ("Question 0?", False),
    ]
    assert [row["completion"] for row in rows[2:]] == ["yes", "no"]
    assert rows[0]["provenance"] == {
        "project": snapshot.digest,
        "thumb": "t1",
        "policies": ["v1"],
        "seeds": [3],
        "sampling": [{}],
    }
    assert rows[2]["provenance"]["judged_by"] == ["judge"]
    assert rows[2]["provenance"]["policies"] == ["sft"]


def test_most_raters_decide_that_both_answers_are_bad(project: Path) -> None:
    rows = list(labelled_rows(read_snapshot(project)))
    assert [(row["prompt"], row["completion"], row["label"]) for row in rows] == [
        ("Question 3?", "yes", False),
        ("Question 3?", "no", False),
    ]
    assert rows[0]["provenance"]["judged_by"] == ["rater-1", "rater-2"]


def test_unpaired_labels_of_a_project_are_thumbs_and_answers_that_are_both_bad(project: Path) -> None:
    with Store.open(project) as store:
        store.add_thumb(Thumb(id="t1", prompt="Hi", answer=Answer(text="Hello"), is_good=True))
        store.add_thumb(Thumb(id="t2", prompt="Hi", answer=Answer(text=" "), is_good=False))
    loaded = load_labelled(DataConfig(preferences=str(project)))
    assert [(row.prompt, row.completion, row.is_good) for row in loaded.rows] == [
        ("Hi", "Hello", True),
        ("Question 3?", "yes", False),
        ("Question 3?", "no", False),
    ]
    assert [(row.source.line, row.category) for row in loaded.bad] == [(8, "empty completion")]  # 6 items, second thumb
    assert loaded.remarks == ("2 thumbs, and 2 answers of items of which both are bad",)


def test_a_project_of_thumbs_alone_gives_good_answers_as_demonstrations(tmp_path: Path) -> None:
    path = make(tmp_path / "votes.db", (question(0), []))
    with pytest.raises(UserError, match="no thumb in"):
        load_labelled(DataConfig(preferences=str(path)))
    with Store.open(path) as store:
        for name in ("good", "bad"):
            answer = Answer(text=name)
            store.add_thumb(Thumb(id=name, prompt="Hi", answer=answer, is_good=name == "good"))
    rows = load_demonstrations(DataConfig(path=str(path))).rows
    assert [(row.prompt, row.completion) for row in rows] == [("Hi", "good")]
