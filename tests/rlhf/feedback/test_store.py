"""Items, raters, guidelines, thumbs, the audit, copies and digests of a project."""

from __future__ import annotations

import sqlite3
from dataclasses import replace
from pathlib import Path

import pytest

from rlhf.errors import MachineryError, UserError
from rlhf.feedback.access import AccessRole, issue_token
from rlhf.feedback.records import Answer, Choice, Purpose, Thumb, Vote
from rlhf.feedback.settings import Disagreement, ProjectSettings
from rlhf.feedback.store import Store
from tests.rlhf.feedback.projects import NOW, golds, item, label, label_all, labels, project

THUMB = Thumb(id="t", prompt="p", answer=Answer(text="a", policy="m"), is_good=True, time=1.0)


def test_a_project_is_readable_by_its_owner_alone_and_never_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "project.db"
    with project(tmp_path, labels(1)) as store:
        assert {name.stat().st_mode & 0o777 for name in tmp_path.iterdir()} == {0o600}  # its WAL too
        with pytest.raises(UserError, match="exists"):
            Store.create(path)
        assert len(store.items()) == 1
    assert [name.name for name in tmp_path.iterdir()] == ["project.db"]


def test_every_commit_is_flushed_and_references_are_checked(tmp_path: Path) -> None:
    with project(tmp_path, []) as store, store.connection() as db:
        pragmas = {
            name: db.execute(f"PRAGMA {name}").fetchone()[0] for name in ("journal_mode", "synchronous", "foreign_keys")
        }
        assert pragmas == {"journal_mode": "wal", "synchronous": 2, "foreign_keys": 1}
        assert db.execute("PRAGMA busy_timeout").fetchone()[0] == 30_000


def test_settings_are_kept_and_checked(tmp_path: Path) -> None:
    chosen = ProjectSettings(overlap=2, reasons=("short",), disagreement_to_adjudicate=Disagreement.NEVER)
    Store.create(tmp_path / "p.db", chosen).close()
    with Store.open(tmp_path / "p.db") as store:
        assert store.settings == chosen
        store.set_settings(replace(chosen, overlap=5))
        assert store.settings.overlap == 5
    for wrong in (
        {"overlap": 0},
        {"gold_fraction": 1.0},
        {"gold_fraction": 0.3, "repeat_fraction": 0.3},
        {"lease_seconds": 0},
    ):
        with pytest.raises(UserError, match=next(iter(wrong))):
            ProjectSettings(**wrong)


def test_items_are_added_once_and_read_by_purpose_and_round(tmp_path: Path) -> None:
    second = replace(item("second"), round="r2")
    with project(tmp_path, []) as store:
        assert store.add_items([item("first"), second, item("first"), *golds(1)]) == 3
        assert store.add_items([item("first"), item("third")]) == 1
        assert [found.prompt for found in store.items()] == ["first", "second", "gold 0", "third"]
        assert [found.prompt for found in store.items(purpose=Purpose.GOLD)] == ["gold 0"]
        assert store.items(round="r2") == [second]
        assert store.item(second.id) == second
        assert store.item("unknown") is None


def test_items_with_a_wrong_or_changed_known_choice_are_refused_together(tmp_path: Path) -> None:
    (gold,) = golds(1)
    with project(tmp_path, [gold]) as store:
        for wrong in (
            replace(gold, gold=Choice.TIE),
            replace(gold, id="x", gold=None),
            replace(item("a"), gold=Choice.TIE),
        ):
            with pytest.raises(UserError, match="known choice"):
                store.add_items([item("new"), wrong])
        assert store.items() == [gold]


@pytest.mark.parametrize("alias", ["", "a b", "ann@example.org", "x" * 41, "a:b", "é", "a\n"])
def test_an_alias_is_short_and_no_address(tmp_path: Path, alias: str) -> None:
    with project(tmp_path, []) as store, pytest.raises(UserError, match="is no alias"):
        store.add_rater(alias)


def test_raters_are_added_once_with_one_role(tmp_path: Path) -> None:
    with project(tmp_path, []) as store:
        assert store.add_rater("Ann_1.x-y")
        assert not store.add_rater("Ann_1.x-y")
        assert store.add_rater("pandalm:1", is_imported=True)
        with pytest.raises(UserError, match="other properties"):
            store.add_rater("Ann_1.x-y", is_adjudicator=True)
        assert [(rater.alias, rater.is_imported, rater.created) for rater in store.raters()] == [
            ("Ann_1.x-y", False, NOW),
            ("pandalm:1", True, NOW),
        ]
        with pytest.raises(UserError, match="no rater 'nobody'"):
            store.suspend("nobody", "why")


def test_a_suspension_marks_the_votes_and_ends(tmp_path: Path) -> None:
    with project(tmp_path, labels(2), "ann") as store:
        label_all(store, "ann")
        store.suspend("ann", "clicks at random")
        assert [vote.is_suspended for vote in store.votes()] == [True, True]
        (rater,) = store.raters()
        assert (rater.is_suspended, rater.suspension_reason, rater.votes) == (True, "clicks at random", 2)
        assert store.counts().started == 0
        store.reinstate("ann")
        assert not store.rater("ann").is_suspended
        assert [vote.is_suspended for vote in store.votes()] == [False, False]
        assert store.counts().started == 2
        assert store.check() == []


def test_a_deleted_rater_leaves_no_trace_in_any_byte(tmp_path: Path) -> None:
    path = tmp_path / "project.db"
    with project(tmp_path, labels(300), "ben") as store:
        store.add_rater("zebra-crossing")
        version = store.add_guideline("read")
        store.acknowledge("zebra-crossing", version)
        issue_token(store, "zebra-crossing", AccessRole.RATER, seconds=60, now=NOW)
        votes = [
            Vote(id=f"v{n}", item=found.id, rater="zebra-crossing", choice=Choice.TIE, comment="quagmire")
            for n, found in enumerate(store.items())
        ]
        store.import_votes(votes)
        label(store, "ben")
        store.undo("zebra-crossing")
        store.suspend("zebra-crossing", "marmalade")
        store.reinstate("zebra-crossing")
        assert b"zebra-crossing" in path.read_bytes() + path.with_name("project.db-wal").read_bytes()
        assert store.delete_rater("zebra-crossing") == 299
        content = b"".join(name.read_bytes() for name in tmp_path.iterdir())
        assert [word for word in (b"zebra", b"quagmire", b"marmalade") if word in content] == []
        assert [rater.alias for rater in store.raters()] == ["ben"]
        assert len(store.votes()) == 1
        assert store.audit(1)[0].action == "rater deleted"
        assert store.audit(1)[0].detail == "299 votes"
        assert store.check() == []


def test_guidelines_have_versions_that_raters_acknowledge(tmp_path: Path) -> None:
    with project(tmp_path, [], "ann") as store:
        assert store.guideline() is None
        assert [store.add_guideline(text) for text in ("one", "two", "two")] == [1, 2, 2]
        assert store.guideline().markdown == "two"
        assert store.guideline(1).markdown == "one"
        assert store.guideline(3) is None
        assert [guideline.version for guideline in store.guidelines()] == [1, 2]
        assert store.acknowledged("ann") is None
        store.acknowledge("ann", 2)
        store.acknowledge("ann", 1)
        store.acknowledge("ann", 2)
        assert store.acknowledged("ann") == 2
        with pytest.raises(UserError, match="no version 3"):
            store.acknowledge("ann", 3)


def test_a_thumb_is_stored_once(tmp_path: Path) -> None:
    with project(tmp_path, []) as store:
        assert store.add_thumb(THUMB)
        assert not store.add_thumb(replace(THUMB, time=2.0))
        with pytest.raises(UserError, match="another content"):
            store.add_thumb(replace(THUMB, is_good=False))
        assert store.thumbs() == [THUMB]


def test_counts_tell_the_progress(tmp_path: Path) -> None:
    with project(tmp_path, [*labels(2), *golds(1)], "ann", "ben", overlap=2) as store:
        label(store, "ann", Choice.FIRST_MUCH)
        label(store, "ann", Choice.FIRST_MUCH)
        label(store, "ben", Choice.SECOND_MUCH)
        store.add_thumb(THUMB)
        counts = store.counts()
        assert counts.items == {Purpose.LABEL: 2, Purpose.GOLD: 1, Purpose.CALIBRATION: 0}
        assert (counts.complete, counts.started, counts.votes, counts.disputed, counts.thumbs) == (1, 1, 3, 1, 1)
        assert counts.by_rater == {"ann": 2, "ben": 1}


def test_the_audit_lists_the_newest_actions_first(tmp_path: Path) -> None:
    with project(tmp_path, labels(1), "ann") as store:
        label(store, "ann")
        store.undo("ann")
        store.suspend("ann", "asked for it")
        assert [(entry.action, entry.alias) for entry in store.audit(2)] == [
            ("rater suspended", "ann"),
            ("vote undone", "ann"),
        ]
        assert store.audit(1)[0].time == NOW
        assert store.audit(1)[0].detail == "asked for it"


def test_a_backup_is_a_whole_project_and_overwrites_nothing(tmp_path: Path) -> None:
    copy = tmp_path / "copy.db"
    with project(tmp_path, labels(3), "ann") as store:
        label(store, "ann")
        store.backup(copy)
        label(store, "ann")
        assert copy.stat().st_mode & 0o777 == 0o600
        with pytest.raises(UserError, match="exists"):
            store.backup(copy)
        with Store.open(copy) as backup:
            assert len(backup.votes()) == 1
            assert backup.digest() != store.digest()
            assert backup.check() == []


def test_the_check_finds_tallies_that_differ_and_broken_references(tmp_path: Path) -> None:
    with project(tmp_path, labels(1), "ann") as store:
        label(store, "ann")
        with store.connection() as db:
            db.execute("PRAGMA foreign_keys = OFF")
            db.execute("UPDATE items SET first = 4")
            db.execute("UPDATE raters SET votes = 9")
            db.execute("UPDATE leases SET item = 77")
            db.execute("INSERT INTO leases VALUES (1, 77, 0, 0, 0, 0)")
        (found,) = store.items()
        assert store.check() == [
            "broken reference in table leases",
            f"the tallies of item {found.id} differ from its votes",
            "the number of votes of rater ann is wrong",
        ]


def filled(folder: Path, *, is_reversed: bool) -> Store:
    folder.mkdir()
    order = -1 if is_reversed else 1
    items = labels(2)
    store = project(folder, items[::order], *["ann", "ben"][::order])
    votes = [
        Vote(
            id=f"{folder.name}1",
            item=items[0].id,
            rater="ann",
            choice=Choice.TIE,
            time=float(order),
            seconds=2.0 + order,
        ),
        Vote(id=f"{folder.name}2", item=items[1].id, rater="ben", choice=Choice.FIRST_MUCH, comment=folder.name),
    ]
    store.import_votes(votes[::order])
    store.add_thumb(replace(THUMB, time=float(order)))
    return store


def test_the_digest_ignores_order_times_and_ids_but_no_judgement(tmp_path: Path) -> None:
    with filled(tmp_path / "a", is_reversed=False) as one, filled(tmp_path / "b", is_reversed=True) as two:
        assert one.digest() == two.digest()
        seen = {one.digest()}
        two.suspend("ann", "why")
        seen.add(two.digest())
        two.reinstate("ann")
        assert two.digest() == one.digest()
        two.import_votes([Vote(id="x", item=labels(1)[0].id, rater="ben", choice=Choice.TIE)])
        seen.add(two.digest())
        two.import_votes([Vote(id="y", item=labels(1)[0].id, rater="ann", choice=Choice.TIE, is_adjudication=True)])
        seen.add(two.digest())
        two.add_items([item("more")])
        seen.add(two.digest())
        two.add_thumb(replace(THUMB, id="u", is_good=False))
        seen.add(two.digest())
        assert len(seen) == 6


def test_a_damaged_file_is_an_error_that_names_it(tmp_path: Path) -> None:
    path = tmp_path / "project.db"
    with project(tmp_path, labels(200), "ann") as store:
        store.delete_rater("ann")  # rewrites the file
    content = bytearray(path.read_bytes())
    content[4096:] = b"\xff" * (len(content) - 4096)
    path.write_bytes(content)
    with pytest.raises(MachineryError, match=r"project\.db cannot be read or written: .*malformed"):
        Store.open(path).items()


def test_a_lock_that_another_process_keeps_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rlhf.storage.database.BUSY_SECONDS", 0.05)
    with project(tmp_path, labels(1)) as store, store.writing(), pytest.raises(MachineryError, match="is locked"):
        store.add_rater("ann")


def test_votes_are_flushed_to_the_disk_and_leases_are_not(tmp_path: Path) -> None:
    query = "PRAGMA synchronous"  # 1: NORMAL, 2: FULL
    with project(tmp_path, labels(1)) as store:
        for is_flushed, expected in ((True, 2), (False, 1), (True, 2)):
            with store.writing(is_flushed=is_flushed) as db:
                assert db.execute(query).fetchone()[0] == expected


def test_a_full_disk_is_reported_and_nothing_is_half_stored(tmp_path: Path) -> None:
    with project(tmp_path, labels(1)) as store:
        with store.connection() as db:
            db.execute(f"PRAGMA max_page_count = {db.execute('PRAGMA page_count').fetchone()[0]}")
        with pytest.raises(MachineryError, match="is full"):
            store.add_items(labels(500))
        assert len(store.items()) == 1
        assert store.check() == []


def test_an_exception_rolls_the_transaction_back(tmp_path: Path) -> None:
    def lose_all(store: Store) -> None:
        with store.writing() as db:
            db.execute("DELETE FROM items")
            db.execute("INSERT INTO leases VALUES (5, 5, 0, 0, 0, 0)")

    with project(tmp_path, labels(1)) as store:
        with pytest.raises(sqlite3.IntegrityError, match="FOREIGN KEY"):
            lose_all(store)
        assert len(store.items()) == 1
