"""Files of other programs, of newer versions, and of older ones, which are migrated."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from rlhf.errors import UserError
from rlhf.feedback.records import Answer, Choice, Thumb
from rlhf.feedback.store import Store
from tests.rlhf.feedback.projects import label, labels, project

OLD = Path(__file__).with_name("project_version_1.sql")


def old_project(path: Path) -> Path:
    """A file of version 1 with one item, one vote of two needed, and a rater who has not voted."""
    with sqlite3.connect(path) as db:
        db.executescript(OLD.read_text(encoding="utf-8"))
    db.close()
    return path


def test_a_file_of_version_1_is_migrated_and_keeps_its_votes(tmp_path: Path) -> None:
    path = old_project(tmp_path / "old.db")
    with Store.open(path) as store:
        assert [(vote.rater, vote.choice, vote.reasons) for vote in store.votes()] == [
            ("ann", Choice.FIRST_MUCH, ("clear",))
        ]
        assert label(store, "ben", Choice.TIE).item.prompt == "why?"
        assert store.add_thumb(Thumb(id="t", prompt="p", answer=Answer(text="a"), is_good=True))
        assert store.audit(1)[0].action == "schema migrated"
        assert store.check() == []
    with sqlite3.connect(path) as db:
        assert db.execute("PRAGMA user_version").fetchone() == (2,)
    with Store.open(path) as store:
        assert [entry.action for entry in store.audit()].count("schema migrated") == 1
        assert len(store.votes()) == 2


def test_a_newer_file_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "project.db"
    project(tmp_path, labels(1)).close()
    with sqlite3.connect(path) as db:
        db.execute("PRAGMA user_version = 3")
    db.close()
    before = path.read_bytes()
    with pytest.raises(UserError, match="has schema version 3, and this version of rlhf reads up to 2"):
        Store.open(path)
    assert path.read_bytes() == before


def test_other_files_are_refused_and_left_as_they_are(tmp_path: Path) -> None:
    text, other, empty = tmp_path / "text.db", tmp_path / "other.db", tmp_path / "empty.db"
    text.write_text("not a database, and longer than the header of one" * 20)
    empty.touch()
    with sqlite3.connect(other) as db:
        db.execute("CREATE TABLE votes (id)")
        db.execute("PRAGMA user_version = 2")
    db.close()
    for path in (text, other, empty):
        before = path.read_bytes()
        with pytest.raises(UserError, match="is no feedback project"):
            Store.open(path)
        assert path.read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty.db", "other.db", "text.db"]


def test_a_missing_file_and_a_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="No such file"):
        Store.open(tmp_path / "missing.db")
    with pytest.raises(UserError, match="Is a directory"):
        Store.open(tmp_path)
    with pytest.raises(UserError, match="missing/project.db cannot be created"):
        Store.create(tmp_path / "missing" / "project.db")
    assert list(tmp_path.iterdir()) == []


def test_a_migration_that_fails_changes_nothing(tmp_path: Path) -> None:
    path = old_project(tmp_path / "old.db")
    with sqlite3.connect(path) as db:
        db.execute("CREATE TABLE access (x)")  # in the way of version 2's table
    db.close()
    with pytest.raises(Exception, match="table access already exists"):
        Store.open(path)
    with sqlite3.connect(path) as db:
        assert db.execute("PRAGMA user_version").fetchone() == (1,)
        assert db.execute("SELECT count(*) FROM sqlite_master WHERE name = 'thumbs'").fetchone() == (0,)
