"""Who labels what next: overlap, leases, calibration, checks, repeats and adjudication."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import replace
from pathlib import Path

import pytest

from rlhf.errors import UserError
from rlhf.feedback.assign import held_item, next_item
from rlhf.feedback.records import Choice, Item, Purpose, Vote
from rlhf.feedback.settings import Disagreement
from rlhf.feedback.store import Store
from tests.rlhf.feedback.projects import NOW, calibrations, golds, label, label_all, labels, project, vote_on

LATER = NOW + 901
"""After a lease of 900 seconds from ``NOW``."""


def voters(store: Store) -> dict[str, set[str]]:
    """The raters of each item's votes, repeats left out; fails if a rater has two."""
    found: dict[str, set[str]] = defaultdict(set)
    for vote in store.votes():
        if not vote.is_repeat:
            assert vote.rater not in found[vote.item]
            found[vote.item].add(vote.rater)
    return found


def test_every_item_gets_as_many_raters_as_the_overlap(tmp_path: Path) -> None:
    with project(tmp_path, labels(20), "a", "b", "c", "d", "e", overlap=3) as store:
        label_all(store, "a", "b", "c", "d", "e")
        assert [len(raters) for raters in voters(store).values()] == [3] * 20
        assert store.counts().complete == 20


def test_an_item_is_held_by_no_more_raters_than_it_needs(tmp_path: Path) -> None:
    with project(tmp_path, labels(2), "a", "b", "c", "d", "e", overlap=2) as store:
        held = [next_item(store, rater, NOW) for rater in "abcde"]
        assert Counter(given.item.id for given in held if given) == {found.id: 2 for found in labels(2)}
        assert held[4] is None


def test_a_rater_who_asks_again_gets_the_held_item(tmp_path: Path) -> None:
    with project(tmp_path, labels(5), "a") as store:
        first = next_item(store, "a", NOW)
        assert next_item(store, "a", NOW + 800) == first
        assert next_item(store, "a", NOW + 1600) == first  # renewed at 800
        assert held_item(store, "a", NOW + 1600) == first
        with Store.open(store.path) as restarted:
            assert next_item(restarted, "a", NOW + 1600) == first
        store.add_vote(vote_on(first, "a"))
        assert held_item(store, "a", NOW) is None
        assert next_item(store, "a", NOW).item != first.item
        assert next_item(store, "a", NOW).done == 1


def test_an_expired_lease_goes_to_another_rater_and_the_late_vote_is_refused(tmp_path: Path) -> None:
    with project(tmp_path, labels(1), "a", "b", "c", overlap=1) as store:
        late = vote_on(next_item(store, "a", NOW), "a", now=LATER)
        assert next_item(store, "b", LATER - 2) is None
        assert next_item(store, "b", LATER) is not None
        with pytest.raises(UserError, match="the lease expired"):
            store.add_vote(late)
        assert next_item(store, "a", LATER) is None
        assert label(store, "b", now=LATER) is not None
        assert len(store.votes()) == 1


def test_a_late_vote_counts_while_its_place_is_free(tmp_path: Path) -> None:
    with project(tmp_path, labels(1), "a", "b", overlap=1) as store:
        assert store.add_vote(vote_on(next_item(store, "a", NOW), "a", now=LATER))
        assert next_item(store, "b", LATER) is None


def test_items_with_votes_come_first(tmp_path: Path) -> None:
    with project(tmp_path, labels(30), "a", "b", "c", overlap=3) as store:
        begun = [label(store, "a").item.id for _ in range(3)]
        assert [label(store, "b").item.id for _ in range(3)] == begun
        next_item(store, "b", NOW)
        assert [label(store, "c").item.id for _ in range(3)] == begun
        assert store.counts().complete == 3


def test_sides_are_chosen_for_each_rater_and_item_and_are_stable(tmp_path: Path) -> None:
    sides = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        with project(tmp_path / name, labels(200), "a", "b") as store:
            sides.append(
                {(rater, given.item.id): given.is_swapped for rater in "ab" for given in label_all(store, rater)}
            )
    assert sides[0] == sides[1]
    swapped = {rater: sum(side for (who, _), side in sides[0].items() if who == rater) for rater in "ab"}
    assert all(70 <= number <= 130 for number in swapped.values())  # 200 fair coins leave this with p < 1e-4
    same = sum(sides[0]["a", found.id] == sides[0]["b", found.id] for found in labels(200))
    assert 70 <= same <= 130


def test_calibration_items_come_first_in_their_order_and_as_many_as_set(tmp_path: Path) -> None:
    items = [*labels(5), *calibrations(4)]
    with project(tmp_path, items, "a", calibration_items=3) as store:
        prompts = [label(store, "a").item.prompt for _ in range(4)]
        assert prompts[:3] == ["calibration 0", "calibration 1", "calibration 2"]
        assert prompts[3] in {"0", "1", "2", "3", "4"}


def test_all_raters_see_all_calibration_items(tmp_path: Path) -> None:
    with project(tmp_path, [*labels(1), *calibrations(2)], "a", "b", "c", overlap=1, calibration_items=9) as store:
        for rater in "abc":
            assert [label(store, rater).item.purpose for _ in range(2)] == [Purpose.CALIBRATION] * 2


def test_gold_items_are_mixed_in_at_their_fraction_and_seen_once(tmp_path: Path) -> None:
    with project(tmp_path, [*labels(400), *golds(200)], "a", "b", gold_fraction=0.25, overlap=2) as store:
        given = {rater: [label(store, rater).item for _ in range(300)] for rater in "ab"}
        for shown in given.values():
            found = [item.id for item in shown if item.purpose == Purpose.GOLD]
            assert 45 <= len(found) <= 105  # 75 expected, 7.5 standard deviation
            assert len(set(found)) == len(found)
        assert _positions(given["a"]) != _positions(given["b"])


def _positions(items: list[Item]) -> list[int]:
    return [position for position, item in enumerate(items) if item.purpose == Purpose.GOLD]


def test_checks_end_with_the_label_items(tmp_path: Path) -> None:
    with project(tmp_path, [*labels(2), *golds(50)], "a", gold_fraction=0.4, repeat_fraction=0.1) as store:
        given = label_all(store, "a")
        assert sum(found.item.purpose == Purpose.LABEL for found in given) == 2
        assert len(given) < 20


def test_repeats_show_an_earlier_item_once_with_the_sides_exchanged(tmp_path: Path) -> None:
    with project(tmp_path, [*labels(200), *golds(5)], "a", repeat_fraction=0.2, gold_fraction=0.1, overlap=1) as store:
        given = label_all(store, "a")
        repeats = [(number, shown) for number, shown in enumerate(given) if shown.is_repeat]
        assert 25 <= len(repeats) <= 85
        assert len({shown.item.id for _, shown in repeats}) == len(repeats)
        for number, shown in repeats:
            first = next(index for index, earlier in enumerate(given) if earlier.item.id == shown.item.id)
            assert number - first > 10
            assert shown.item.purpose == Purpose.LABEL
            assert given[first].is_swapped != shown.is_swapped
        assert len(voters(store)) == 205
        assert store.counts().complete == 200  # repeats fill no place


def test_a_suspended_raters_votes_are_replaced(tmp_path: Path) -> None:
    with project(tmp_path, labels(6), "a", "b", "c", overlap=2) as store:
        label_all(store, "a", "b")
        assert next_item(store, "c", NOW) is None
        store.suspend("a", "clicks")
        assert len(label_all(store, "b", "c")) == 6
        assert all(raters == {"a", "b", "c"} for raters in voters(store).values())
        store.reinstate("a")
        assert next_item(store, "c", NOW) is None
        assert store.check() == []


def test_a_suspended_rater_holds_nothing(tmp_path: Path) -> None:
    with project(tmp_path, labels(1), "a", "b", overlap=1) as store:
        next_item(store, "a", NOW)
        store.suspend("a", "gone")
        assert next_item(store, "b", NOW) is not None


def test_a_deleted_raters_items_come_back(tmp_path: Path) -> None:
    with project(tmp_path, labels(4), "a", "b", overlap=1) as store:
        label_all(store, "a")
        assert next_item(store, "b", NOW) is None
        store.delete_rater("a")
        assert len(label_all(store, "b")) == 4


def test_an_undone_vote_reopens_the_item_for_others(tmp_path: Path) -> None:
    with project(tmp_path, labels(2), "a", "b", overlap=1) as store:
        first = label(store, "a")
        label(store, "a")
        assert next_item(store, "b", NOW) is None
        store.undo("a")
        store.undo("a")  # holds the first item, and the second one is free again
        given = next_item(store, "b", NOW)
        assert given.item.id != first.item.id
        assert next_item(store, "a", NOW).item.id == first.item.id


def test_a_skipped_item_goes_to_another_rater_until_more_skipped_than_must_vote(tmp_path: Path) -> None:
    with project(tmp_path, labels(1), "a", "b", "c", "d", overlap=2) as store:
        label(store, "a", Choice.SKIP)
        assert next_item(store, "a", NOW) is None
        label(store, "b", Choice.SKIP)
        label(store, "c", Choice.SKIP)
        assert next_item(store, "d", NOW) is None
        store.suspend("b", "skips all")
        assert label(store, "d") is not None
        store.add_rater("e")
        assert label(store, "e") is not None
        assert store.counts().complete == 1


def test_a_larger_overlap_reopens_items(tmp_path: Path) -> None:
    with project(tmp_path, labels(3), "a", "b", overlap=1) as store:
        label_all(store, "a")
        assert next_item(store, "a", NOW) is next_item(store, "b", NOW) is None
        store.set_settings(replace(store.settings, overlap=2))
        assert next_item(store, "a", NOW) is None
        assert len(label_all(store, "b")) == 3


def test_a_rater_who_has_judged_all_is_given_new_items_that_are_added_later(tmp_path: Path) -> None:
    with project(tmp_path, labels(3), "a") as store:
        label_all(store, "a")
        store.add_items(labels(5))
        assert {given.item.prompt for given in label_all(store, "a")} == {"3", "4"}


@pytest.mark.parametrize(
    ("choices", "opposite", "no_majority"),
    [
        ("first_much first_slightly first_much", False, False),
        ("first_much first_slightly second_much", True, False),
        ("first_much tie second_much", True, True),
        ("first_much tie both_bad", False, False),
        ("first_much first_much tie", False, False),
        ("tie both_bad tie", False, False),
    ],
)
def test_disputed_items_go_to_an_adjudicator(tmp_path: Path, choices: str, opposite: bool, no_majority: bool) -> None:
    with project(tmp_path, labels(1), "a", "b", "c") as store:
        store.add_rater("judge", is_adjudicator=True)
        for rater, choice in zip("abc", choices.split()):
            assert next_item(store, "judge", NOW) is None
            label(store, rater, Choice(choice))
        rules = {Disagreement.OPPOSITE: opposite, Disagreement.NO_MAJORITY: no_majority, Disagreement.NEVER: False}
        for rule, is_disputed in rules.items():
            store.set_settings(replace(store.settings, disagreement_to_adjudicate=rule))
            assert store.counts().disputed == is_disputed
        store.set_settings(replace(store.settings, disagreement_to_adjudicate=Disagreement.OPPOSITE))
        assert (next_item(store, "judge", NOW) is not None) == opposite


def test_an_item_is_adjudicated_once_and_by_nobody_who_voted(tmp_path: Path) -> None:
    with project(tmp_path, labels(3), "a", "b", overlap=2) as store:
        for judge in ("judge", "second"):
            store.add_rater(judge, is_adjudicator=True)
        for found in labels(3):
            store.import_votes(
                [
                    Vote(id=f"{found.id}{rater}", item=found.id, rater=rater, choice=choice)
                    for rater, choice in (("a", Choice.FIRST_MUCH), ("b", Choice.SECOND_MUCH))
                ]
            )
        store.import_votes([Vote(id="own", item=labels(1)[0].id, rater="second", choice=Choice.TIE)])
        held = {next_item(store, judge, NOW).item.id for judge in ("judge", "second")}
        assert len(held) == 2
        given = label_all(store, "second", "judge")
        assert len(given) == 3
        assert all(found.is_adjudication for found in given)
        decisions = [vote for vote in store.votes() if vote.is_adjudication]
        assert len({vote.item for vote in decisions}) == 3
        assert labels(1)[0].id not in {vote.item for vote in decisions if vote.rater == "second"}
        assert (store.counts().adjudicated, store.counts().disputed, store.counts().complete) == (3, 0, 3)
        store.suspend("judge", "hasty")
        assert store.counts().disputed == sum(vote.rater == "judge" for vote in decisions)


def test_an_adjudicator_who_skips_leaves_the_item_to_another(tmp_path: Path) -> None:
    with project(tmp_path, labels(1), "a", "b", overlap=2) as store:
        for judge in ("judge", "second"):
            store.add_rater(judge, is_adjudicator=True)
        label(store, "a", Choice.FIRST_MUCH)
        label(store, "b", Choice.SECOND_MUCH)
        label(store, "judge", Choice.SKIP)
        assert next_item(store, "judge", NOW) is None
        assert label(store, "second") is not None
        assert store.undo("judge") is None


def test_an_adjudicator_is_given_no_other_items(tmp_path: Path) -> None:
    with project(tmp_path, [*labels(3), *calibrations(1)], calibration_items=1) as store:
        store.add_rater("judge", is_adjudicator=True)
        assert next_item(store, "judge", NOW) is None


def test_every_statement_of_the_labelling_page_uses_an_index(tmp_path: Path) -> None:
    items = [*labels(60), *golds(20), *calibrations(2)]
    with project(
        tmp_path, items, "a", "b", gold_fraction=0.2, repeat_fraction=0.2, calibration_items=2, overlap=2
    ) as store:
        store.add_rater("judge", is_adjudicator=True)
        statements: list[str] = []
        with store.connection() as db:
            db.set_trace_callback(statements.append)
        label_all(store, "a", "b")
        store.undo("a")
        label(store, "b", Choice.SECOND_MUCH)
        next_item(store, "judge", NOW)
        store.acknowledged("a")
        with store.connection() as db:
            db.set_trace_callback(None)
            kinds = ("SELECT", "INSERT", "UPDATE", "DELETE")
            chosen = [text for text in statements if text.lstrip().startswith(kinds)] + [
                "SELECT max(turn) + 1 FROM items"
            ]
            assert len(chosen) > 500
            plans = {
                (row["detail"], text.split()[0]): text
                for text in chosen
                for row in db.execute(f"EXPLAIN QUERY PLAN {text}")
            }
    scans = {detail: text for (detail, _), text in plans.items() if detail.startswith("SCAN") and "INDEX" not in detail}
    assert set(scans) - {"SCAN first", "SCAN 2 CONSTANT ROWS"} == set(), scans
    searches = [detail for detail, _ in plans if detail.startswith("SEARCH")]
    for index in ("items_queue (purpose=? AND counted=? AND turn>?)", "items_dispute", "votes_rater", "leases_item"):
        assert any(index in detail for detail in searches), index


def test_a_round_needs_no_vote_on_an_item_that_everybody_skips(tmp_path: Path) -> None:
    rounds = [replace(each, round="round-1") for each in labels(2)]
    with project(tmp_path, rounds, "ann", "bob", overlap=1) as store:
        assert store.round_progress("round-1", 1) == (0, 2)
        first = next_item(store, "ann", NOW)
        assert first is not None
        store.add_vote(vote_on(first, "ann", Choice.SKIP))
        assert store.round_progress("round-1", 1) == (0, 1)
        second = next_item(store, "ann", NOW)
        assert second is not None
        store.add_vote(vote_on(second, "ann"))
        assert store.round_progress("round-1", 1) == (1, 0)
