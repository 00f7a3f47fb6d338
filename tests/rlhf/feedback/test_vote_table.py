"""A vote is stored once, only for a held item, and can be undone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from rlhf.errors import UserError
from rlhf.feedback.assign import held_item, next_item
from rlhf.feedback.records import Choice, Vote
from rlhf.feedback.store import Store
from tests.rlhf.feedback.projects import NOW, calibrations, label, label_all, labels, project, vote_on


@pytest.fixture
def store(tmp_path: Path) -> Store:
    with project(tmp_path, labels(30), "ann", "ben", overlap=1) as opened:
        yield opened


def test_a_vote_comes_back_with_every_field(store: Store) -> None:
    store.add_guideline("read")
    vote = replace(
        vote_on(next_item(store, "ann", NOW), "ann", Choice.SECOND_SLIGHTLY),
        reasons=("clear", "concise"),
        comment="\ud800 好",
        seconds=2.5,
        guideline=1,
    )
    assert store.add_vote(vote)
    assert store.votes() == [vote]
    assert store.vote(vote.id) == vote
    assert store.vote("unknown") is None


def test_the_same_vote_is_stored_once_even_if_it_is_timed_again(store: Store) -> None:
    vote = vote_on(next_item(store, "ann", NOW), "ann")
    assert store.add_vote(vote)
    assert not store.add_vote(vote)
    assert not store.add_vote(replace(vote, time=NOW + 5, seconds=9.0, guideline=2))
    assert store.votes() == [vote]
    for other in (replace(vote, choice=Choice.TIE), replace(vote, rater="ben"), replace(vote, comment="x")):
        with pytest.raises(UserError, match="stored with another content"):
            store.add_vote(other)
    assert store.votes() == [vote]


def test_only_the_holder_votes_and_as_it_was_shown(store: Store) -> None:
    vote = vote_on(next_item(store, "ann", NOW), "ann")
    other = next(found for found in store.items() if found.id != vote.item)
    for wrong in (
        replace(vote, rater="ben"),
        replace(vote, item=other.id),
        replace(vote, is_swapped=not vote.is_swapped),
        replace(vote, is_repeat=True),
        replace(vote, is_adjudication=True),
    ):
        with pytest.raises(UserError, match="does not hold"):
            store.add_vote(wrong)
    with pytest.raises(UserError, match="no rater"):
        store.add_vote(replace(vote, rater="eve"))
    with pytest.raises(UserError, match="no item"):
        store.add_vote(replace(vote, item="x"))
    assert store.votes() == []
    assert store.add_vote(vote)
    with pytest.raises(UserError, match="does not hold"):
        store.add_vote(replace(vote, id="second"))


def test_a_suspended_and_an_imported_rater_do_not_vote(store: Store) -> None:
    vote = vote_on(next_item(store, "ann", NOW), "ann")
    store.suspend("ann", "clicks at random")
    for refused in (lambda: store.add_vote(vote), lambda: next_item(store, "ann", NOW), lambda: store.undo("ann")):
        with pytest.raises(UserError, match=r"ann is suspended\n  why: clicks at random"):
            refused()
    store.add_rater("file:1", is_imported=True)
    with pytest.raises(UserError, match="imported"):
        next_item(store, "file:1", NOW)


def test_votes_are_found_by_item_and_by_rater(store: Store) -> None:
    first, second = label(store, "ann"), label(store, "ben")
    label(store, "ann")
    assert [vote.rater for vote in store.votes()] == ["ann", "ben", "ann"]
    assert [vote.item for vote in store.votes(rater="ben")] == [second.item.id]
    assert [vote.rater for vote in store.votes(item=first.item.id)] == ["ann"]
    assert store.votes(item=first.item.id, rater="ben") == []


def test_an_undone_vote_gives_its_item_back_as_it_was_shown(store: Store) -> None:
    label(store, "ann")
    shown = next_item(store, "ann", NOW)
    vote = vote_on(shown, "ann")
    store.add_vote(vote)
    next_item(store, "ann", NOW)
    assert store.undo("ann") == vote
    assert len(store.votes()) == 1
    assert held_item(store, "ann", NOW) == next_item(store, "ann", NOW) == shown
    with pytest.raises(UserError, match="was undone"):
        store.add_vote(vote)  # a copy that was late on its way
    assert store.add_vote(replace(vote, id="again", choice=Choice.TIE))
    assert store.audit(1)[0].detail == f"item {vote.item}"
    assert store.check() == []


def test_twenty_votes_can_be_undone_and_no_more(store: Store) -> None:
    given = [label(store, "ann").item.id for _ in range(25)]
    undone = [vote.item for _ in range(21) if (vote := store.undo("ann")) is not None]
    assert undone == given[:4:-1]
    assert len(undone) == 20
    label(store, "ann")
    assert store.undo("ann") is not None
    assert store.undo("ann") is None  # a vote and its undoing do not reach further back


def test_nothing_is_undone_without_votes_and_no_calibration_after_its_answer(tmp_path: Path) -> None:
    with project(tmp_path, [*labels(1), *calibrations(1)], "ann", calibration_items=1) as store:
        assert store.undo("ann") is None
        label(store, "ann")
        assert store.undo("ann") is None
        label(store, "ann")
        assert store.undo("ann") is not None


def test_a_skip_is_not_undone_after_others_completed_the_item(tmp_path: Path) -> None:
    with project(tmp_path, labels(1), "ann", "ben", overlap=1) as store:
        label(store, "ann", Choice.SKIP)
        assert store.undo("ann").choice == Choice.SKIP
        label(store, "ann", Choice.SKIP)
        label(store, "ben")
        assert store.undo("ann") is None
        assert len(store.votes()) == 2
        assert store.check() == []


def test_imported_votes_need_no_lease_and_may_exceed_the_overlap(store: Store) -> None:
    first, second = labels(2)
    for alias in ("file:1", "file:2"):
        store.add_rater(alias, is_imported=True)
    store.suspend("file:2", "bad")
    votes = [
        Vote(id="1", item=first.id, rater="file:1", choice=Choice.TIE, is_suspended=True),
        Vote(id="2", item=first.id, rater="file:2", choice=Choice.TIE),
        Vote(id="3", item=first.id, rater="ann", choice=Choice.TIE),
        Vote(id="4", item=first.id, rater="ann", choice=Choice.TIE, is_repeat=True, is_swapped=True),
    ]
    assert store.import_votes(votes) == 4
    assert store.import_votes(votes) == 0
    assert [vote.is_suspended for vote in store.votes()] == [False, True, False, False]
    new = Vote(id="5", item=second.id, rater="ann", choice=Choice.TIE)
    for wrong, message in (
        (replace(votes[0], choice=Choice.SKIP), "another content"),
        (replace(votes[2], id="6"), "ann has voted on item"),
        (replace(new, id="6", item="x"), "no item"),
        (replace(new, id="6", rater="x"), "no rater"),
    ):
        with pytest.raises(UserError, match=message):
            store.import_votes([new, wrong])
    assert len(store.votes()) == 4
    assert first.id not in {given.item.id for given in label_all(store, "ann", "ben")}


def test_many_votes_are_imported_and_read_back(tmp_path: Path) -> None:
    items = labels(500)
    with project(tmp_path, items, *(f"r{rater}" for rater in range(8))) as store:
        votes = [
            Vote(id=f"{index}-{rater}", item=found.id, rater=f"r{rater}", choice=list(Choice)[(index + rater) % 7])
            for index, found in enumerate(items)
            for rater in range(8)
        ]
        assert store.import_votes(votes) == 4_000
        assert store.votes() == votes
        assert store.counts().votes == 4_000
        assert store.check() == []
