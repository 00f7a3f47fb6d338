"""A project survives export and import: every field of everything in it."""

from __future__ import annotations

import json
from itertools import count, product
from pathlib import Path

import pytest

from rlhf.errors import UserError
from rlhf.feedback.importing import Added, restore
from rlhf.feedback.items import make_item
from rlhf.feedback.native import project_rows, read_project
from rlhf.feedback.records import Answer, Choice, Item, Purpose, Thumb, Vote
from rlhf.feedback.settings import ProjectSettings
from rlhf.feedback.store import Store
from rlhf.records import Message
from rlhf.storage.jsonl import to_line

RATERS, ITEMS = 20, 950
CHOICES = list(Choice)


def item(number: int) -> Item:
    """An item with every field set."""
    turns = (
        Message("system", "Be kind"),
        Message("user", f"Question {number} \u2028 ü 語", {"name": "ann"}),
        Message("assistant", "", {"tool_calls": [{"id": 1}]}, has_content=False, trained=False),
    )
    answers = (
        Answer(text=f"yes {number}\n\x00", policy="sft", seed=number, sampling={"temperature": 0.7, "top_p": 1}),
        Answer(text="", policy="ppo"),
    )
    is_gold = number % 50 == 0
    return make_item(
        turns if number % 2 else f"Question {number}",
        answers,
        purpose=Purpose.GOLD if is_gold else Purpose.LABEL,
        gold=Choice.SECOND_MUCH if is_gold else None,
        explanation="because" if is_gold else "",
        round=f"round-{number % 3}",
        source=f"rows.jsonl:{number}",
        group=f"question-{number // 2}",
        extra={"margin": 0.1, "nested": {"a": [1, None, "x"]}},
    )


def vote(item: Item, rater: str, number: int, **fields: object) -> Vote:
    """A vote whose fields differ from vote to vote."""
    return Vote(
        id=f"vote-{number}",
        item=item.id,
        rater=rater,
        choice=CHOICES[number % len(CHOICES)],
        is_swapped=number % 2 == 1,
        reasons=("clear", "harmless")[: number % 3],
        comment="ünclear\n" * (number % 2),
        seconds=None if number % 5 == 0 else number / 7,
        guideline=None if number % 4 == 0 else 1 + number % 2,
        time=1e9 + number / 3,
        **fields,  # type: ignore[arg-type]
    )


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with 20,000 votes, of which 950 are repeats and 50 adjudications; one rater is suspended."""
    path = tmp_path_factory.mktemp("feedback") / "whole.db"
    ticks = count(1000)
    with Store.create(path, ProjectSettings(overlap=20, reasons=("a",)), clock=lambda: float(next(ticks))) as store:
        store.add_guideline("# First")
        store.add_guideline("# Second")
        items = [item(number) for number in range(ITEMS)]
        store.add_items(items)
        aliases = [f"rater-{number}" for number in range(RATERS)]
        for alias in aliases:
            store.add_rater(alias)
        store.add_rater("judge", is_adjudicator=True)
        store.add_rater("pandalm:annotator1", is_imported=True)
        for alias, version in product(aliases, (1, 2)):
            store.acknowledge(alias, version)
        votes = [vote(one, alias, i) for i, (one, alias) in enumerate(product(items, aliases))]
        votes += [vote(one, "rater-0", 50_000 + i, is_repeat=True) for i, one in enumerate(items)]
        votes += [vote(one, "judge", 60_000 + i, is_adjudication=True) for i, one in enumerate(items[:50])]
        store.import_votes(votes)
        store.suspend("rater-3", "always left")
        for i in range(3):
            store.add_thumb(
                Thumb(
                    id=f"thumb-{i}",
                    prompt="Hi" if i else (Message("user", "Hi"),),
                    answer=Answer(text="Hello", policy="v1", seed=i),
                    is_good=i == 1,
                    comment="nice",
                    time=5.5 + i,
                )
            )
    return path


def export(path: Path, file: Path) -> None:
    """Write a project's native file."""
    with Store.open(path) as store, file.open("w", encoding="utf-8") as out:
        out.writelines(map(to_line, project_rows(store)))


def test_20000_votes_survive_export_and_import_unchanged(project: Path, tmp_path: Path) -> None:
    file = tmp_path / "project.jsonl"
    export(project, file)
    contents = read_project(str(file))
    assert (len(contents.votes), len(contents.items)) == (20_000, ITEMS)
    with Store.open(project) as old, Store.create(tmp_path / "new.db", contents.settings) as new:
        assert restore(new, contents) == Added(items=ITEMS, votes=20_000, thumbs=3, raters=RATERS + 2)
        assert new.digest() == old.digest()
        assert new.items() == old.items()
        assert new.votes() == old.votes()
        assert new.raters() == old.raters()
        assert new.guidelines() == old.guidelines()
        assert new.thumbs() == old.thumbs()
        assert new.settings == old.settings
        assert sum(vote.is_suspended for vote in new.votes()) == ITEMS
        assert new.acknowledged("rater-7") == 2
        for one, other in zip(old.items(), new.items(), strict=True):  # fields that do not take part in ==
            assert [turn.trained for turn in one.prompt if isinstance(turn, Message)] == [
                turn.trained for turn in other.prompt if isinstance(turn, Message)
            ]
            assert [answer.sampling for answer in one.answers] == [answer.sampling for answer in other.answers]
    again = tmp_path / "again.jsonl"
    export(tmp_path / "new.db", again)
    assert again.read_bytes() == file.read_bytes()  # the times of raters, guidelines and acknowledgements too


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """The native file of a project of one item."""
    with Store.create(tmp_path / "small.db") as store:
        store.add_guideline("# First")
        store.add_items([item(1)])
        store.add_rater("ann")
        store.import_votes([vote(item(1), "ann", 1)])
        store.add_thumb(Thumb(id="t", prompt="Hi", answer=Answer(text="Hello"), is_good=True))
    export(tmp_path / "small.db", tmp_path / "small.jsonl")
    return tmp_path / "small.jsonl"


def test_a_second_import_adds_nothing(small: Path, tmp_path: Path) -> None:
    contents = read_project(str(small))
    with Store.open(tmp_path / "small.db") as store:
        before = store.digest()
        assert restore(store, contents) == Added(items=0, votes=0, thumbs=0, raters=0)
        assert store.digest() == before
        assert (len(store.votes()), len(store.thumbs()), len(store.guidelines())) == (1, 1, 1)


def test_a_suspension_in_the_file_suspends_the_rater_of_the_project(small: Path, tmp_path: Path) -> None:
    with Store.open(tmp_path / "small.db") as store:
        store.suspend("ann", "too fast")
    export(tmp_path / "small.db", tmp_path / "suspended.jsonl")
    with Store.create(tmp_path / "new.db") as store:
        restore(store, read_project(str(small)))
        assert [vote.is_suspended for vote in store.votes()] == [False]
        restore(store, read_project(str(tmp_path / "suspended.jsonl")))
        assert [vote.is_suspended for vote in store.votes()] == [True]


def test_other_guidelines_of_the_same_version_are_refused(small: Path, tmp_path: Path) -> None:
    with Store.create(tmp_path / "other.db") as store:
        store.add_guideline("# Another")
        with pytest.raises(UserError, match="version 1 of the guidelines has another text"):
            restore(store, read_project(str(small)))
        assert (store.items(), store.raters(), store.votes()) == ([], [], [])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda lines: lines[1:], "the first line is not the project's"),
        (lambda lines: [lines[0], lines[0]], "the project's line occurs twice"),
        (lambda lines: [lines[0], '{"kind": "ballot"}'], "kind is 'ballot'"),
        (lambda lines: [lines[0], '{"kind": "vote"}'], "vote: "),
        (lambda lines: [*lines[:3], lines[3][:50]], "not JSON"),
        (lambda lines: [json.dumps({"kind": "project", "version": 2, "settings": {}})], "version 2 of the native"),
        (lambda lines: ['{"prompt": "Hi", "chosen": "a", "rejected": "b"}'], "kind is None"),
        (lambda lines: [""], "has no content"),
    ],
)
def test_a_damaged_file_is_refused_as_a_whole(small: Path, change, message: str) -> None:
    lines = small.read_text(encoding="utf-8").splitlines()
    small.write_text("\n".join(change(lines)) + "\n", encoding="utf-8")
    with pytest.raises(UserError, match=message):
        read_project(str(small))


@pytest.mark.parametrize(
    ("kind", "field", "value"),
    [
        ("vote", "guideline", 2**70),
        ("vote", "seconds", "abc"),
        ("vote", "seconds", [1]),
        ("vote", "time", None),
        ("vote", "comment", "half of a pair: \ud800"),
        ("vote", "is_repeat", "false"),
        ("rater", "alias", 5),
        ("rater", "is_suspended", "false"),
        ("item", "extra", [1]),
        ("item", "answers", [{"text": 5}, {"text": "b"}]),
        ("guideline", "version", 2**70),
    ],
)
def test_a_field_of_another_type_is_refused_with_its_line(kind: str, field: str, value: object, tmp_path: Path) -> None:
    with Store.create(tmp_path / "votes.db") as store:
        store.add_items([item(1)])
        store.add_rater("ann", is_imported=True)
        store.add_guideline("# Be fair")
        store.import_votes([vote(item(1), "ann", 1)])
        rows = list(project_rows(store))
    number = next(i for i, row in enumerate(rows) if row["kind"] == kind)
    rows[number] = {**rows[number], field: value}
    path = tmp_path / "project.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(UserError, match=f"project.jsonl:{number + 1}"):
        read_project(str(path))


def test_a_file_that_is_refused_suspends_nobody(tmp_path: Path) -> None:
    with Store.create(tmp_path / "given.db") as given:
        given.add_items([item(1)])
        given.add_rater("ann", is_imported=True)
        given.import_votes([vote(item(1), "ann", 1)])
        given.suspend("ann", "too fast")
        path = tmp_path / "given.jsonl"
        path.write_text("".join(map(to_line, project_rows(given))))
    with Store.create(tmp_path / "kept.db") as kept:
        kept.add_items([item(1)])
        kept.add_rater("ann", is_imported=True)
        kept.import_votes([vote(item(1), "ann", 2)])
        with pytest.raises(UserError):
            restore(kept, read_project(str(path)))
        assert [rater.is_suspended for rater in kept.raters()] == [False]
