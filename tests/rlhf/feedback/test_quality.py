"""Numbers of a rater, by hand."""

from __future__ import annotations

import json

import pytest

from rlhf.feedback.quality import RaterQuality, rater_quality
from rlhf.feedback.records import Answer, Choice, Item, Purpose, Vote

F, T, S, BAD, SKIP = Choice.FIRST_MUCH, Choice.TIE, Choice.SECOND_SLIGHTLY, Choice.BOTH_BAD, Choice.SKIP


def item(name: str, texts: tuple[str, str] = ("x", "y"), **changes) -> Item:
    return Item(id=name, prompt=name, answers=(Answer(text=texts[0]), Answer(text=texts[1])), **changes)


def gold(name: str, choice: Choice) -> Item:
    return item(name, purpose=Purpose.GOLD, gold=choice)


def vote(of: str, rater: str, choice: Choice, **changes) -> Vote:
    return Vote(id=f"{of}{rater}{changes}", item=of, rater=rater, choice=choice, **changes)


def of(rater: str, items: list[Item], votes: list[Vote], **changes) -> RaterQuality:
    return next(found for found in rater_quality(items, votes, **changes) if found.rater == rater)


def test_gold_asks_for_the_outcome_and_not_the_strength() -> None:
    items = [gold("a", F), gold("b", F), gold("c", BAD), gold("d", S), item("e")]
    votes = [vote("a", "r", Choice.FIRST_SLIGHTLY), vote("b", "r", T), vote("c", "r", BAD), vote("d", "r", SKIP)]
    found = of("r", items, votes)
    assert (found.gold.count, found.gold.n) == (2, 3)
    assert (found.gold.low, found.gold.high) == (pytest.approx(0.2077, abs=1e-4), pytest.approx(0.9385, abs=1e-4))
    assert (found.skips.count, found.skips.n, found.votes) == (1, 4, 3)


def test_repeats_are_compared_with_the_first_vote_and_count_nowhere_else() -> None:
    votes = [vote("a", "r", F), vote("a", "r", S, is_repeat=True), vote("b", "r", S), vote("b", "r", S, is_repeat=True)]
    found = of("r", [item("a"), item("b")], [*votes, vote("a", "s", F)])
    assert (found.consistency.count, found.consistency.n) == (1, 2)
    assert (found.agreement.count, found.agreement.n, found.votes) == (1, 1, 2)


def test_agreement_is_with_most_of_the_others() -> None:
    """Others on a: F F S, r agrees; on b: F S, no majority; on c: S, r disagrees; d: nobody else."""
    rows = {"a": [F, F, F, S], "b": [F, F, S], "c": [F, S], "d": [F]}
    votes = [vote(name, f"r{i}", choice) for name, row in rows.items() for i, choice in enumerate(row)]
    found = of("r0", [item(name) for name in rows], votes)
    assert (found.agreement.count, found.agreement.n) == (1, 2)


def test_a_suspended_rater_has_numbers_but_is_nobodys_other() -> None:
    votes = [vote("a", "r", F), vote("a", "s", F, is_suspended=True)]
    assert of("r", [item("a")], votes).agreement.n == 0
    assert (of("s", [item("a")], votes).agreement.count, of("s", [item("a")], votes).votes) == (1, 1)


def test_left_is_first_unless_swapped() -> None:
    """10 votes, 9 left: p = 2 (1 + 10)/2^10 = 0.0215."""
    names = [f"i{k}" for k in range(11)]
    votes = [vote(name, "r", F) for name in names[:4]] + [vote(name, "r", S, is_swapped=True) for name in names[4:9]]
    votes += [vote(names[9], "r", F, is_swapped=True), vote(names[10], "r", T)]
    found = of("r", [item(name) for name in names], votes)
    assert (found.left.count, found.left.n) == (9, 10)
    assert found.left_p == pytest.approx(22 / 1024)


def test_votes_without_drawn_sides_say_nothing_of_a_preferred_one() -> None:
    found = of("r", [item("a"), item("b")], [vote("a", "r", F), vote("b", "r", F)])
    assert found.left_p is None


def test_longer_answers_beside_the_others_votes() -> None:
    """a: first is longer, r and one of two others choose it; b: second is, r chooses it; c: equal; d: r has a tie."""
    items = [item("a", ("long", "s")), item("b", ("s", "long")), item("c"), item("d", ("long", "s"))]
    votes = [vote("a", "r", F), vote("b", "r", S), vote("c", "r", F), vote("d", "r", T)]
    votes += [vote("a", "s", F), vote("a", "t", S), vote("b", "s", T), vote("d", "s", F)]
    found = of("r", items, votes)
    assert (found.longer.count, found.longer.n) == (2, 2)
    assert (found.longer_others.count, found.longer_others.n) == (1, 2)


def test_speed_is_that_of_votes_with_a_known_time() -> None:
    names = "abcd"
    votes = [vote(name, "r", F, seconds=seconds) for name, seconds in zip(names, [1.0, 2.0, 9.0, None])]
    found = of("r", [item(name) for name in names], votes, fast_seconds=2.0)
    assert (found.fast.count, found.fast.n, found.seconds) == (1, 3, 2.0)


def test_json_has_values_and_no_nan() -> None:
    row = of("r", [item("a")], [vote("a", "r", F)]).as_json()
    assert row["left"]["value"] == 1.0 and row["gold"]["value"] is None and row["seconds"] is None
    json.dumps(row, allow_nan=False)
