"""From votes to preferences: the three rules, what does not count, ties, and adjudications."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest

from rlhf.feedback.aggregate import NO_OUTCOME, Aggregated, Ties, bradley_terry, dawid_skene, majority
from rlhf.feedback.judgements import independent
from rlhf.feedback.records import Answer, Choice, Item, Purpose, Vote
from rlhf.feedback.simulate import Habit, SimulatedRater, simulate_items, simulate_votes

MUCH, F, T, S, S2 = Choice.FIRST_MUCH, Choice.FIRST_SLIGHTLY, Choice.TIE, Choice.SECOND_SLIGHTLY, Choice.SECOND_MUCH
BAD, SKIP = Choice.BOTH_BAD, Choice.SKIP
RULES = [majority, dawid_skene, bradley_terry]
Rule = Callable[..., Aggregated]


def item(name: str, texts: tuple[str, str] = ("x", "y"), prompt: str | None = None, **changes) -> Item:
    return Item(id=name, prompt=prompt or name, answers=(Answer(text=texts[0]), Answer(text=texts[1])), **changes)


def vote(of: str, rater: str, choice: Choice, **changes) -> Vote:
    return Vote(id=f"{of}{rater}{changes}", item=of, rater=rater, choice=choice, **changes)


def table(**rows: list[Choice]) -> list[Vote]:
    """Votes of raters r0, r1, ... on each item."""
    return [vote(of, f"r{r}", choice) for of, row in rows.items() for r, choice in enumerate(row)]


def test_majority_by_hand() -> None:
    """Strengths 2, 1, −1: mean 2/3, halved 1/3; 2 of 3 votes. b: −2, 0: −1, halved ½; the tie counts one half."""
    found = majority([item("a"), item("b")], table(a=[MUCH, F, S], b=[S2, T]))
    a, b = found.outcomes
    assert (a.item.id, a.first_wins, a.margin, a.probability) == ("a", True, pytest.approx(1 / 3), pytest.approx(2 / 3))
    assert (b.first_wins, b.margin, b.probability) == (False, 0.5, 0.75)
    assert (a.votes, a.raters) == (3, ("r0", "r1", "r2"))
    assert (found.ties, found.left_out, found.is_converged) == (0, {}, True)


@pytest.mark.parametrize(
    ("row", "first_wins"), [([F, S], None), ([T, T, F], None), ([F, F, T, T], True), ([F, T], True), ([S, S, F], False)]
)
def test_majority_with_ties(row: list[Choice], first_wins: bool | None) -> None:
    found = majority([item("a")], table(a=row))
    assert [outcome.first_wins for outcome in found.outcomes] == ([] if first_wins is None else [first_wins])
    assert found.ties == (first_wins is None)


def test_a_weak_majority_against_a_strong_vote_has_no_negative_margin() -> None:
    outcome = majority([item("a")], table(a=[F, F, S2, F, S2])).outcomes[0]
    assert outcome.first_wins and outcome.margin == 0


@pytest.mark.parametrize("rule", RULES)
def test_what_does_not_count(rule: Rule) -> None:
    items = [item("a"), item("g", purpose=Purpose.GOLD, gold=S), item("bad"), item("unseen")]
    votes = [
        *table(a=[F, F, BAD, SKIP], bad=[BAD, BAD, F], g=[S]),
        vote("a", "r5", S, is_suspended=True),
        vote("a", "r0", S, is_repeat=True),
    ]
    found = rule(items, votes)
    assert [(outcome.item.id, outcome.first_wins, outcome.votes) for outcome in found.outcomes] == [("a", True, 2)]
    assert found.left_out == {
        "other purpose": 1,
        "skip": 1,
        "suspended rater": 1,
        "repeat": 1,
        "both bad": 4,
        NO_OUTCOME: 2,
    }


@pytest.mark.parametrize("rule", RULES)
def test_an_adjudicator_overrides_the_votes(rule: Rule) -> None:
    items = [item(name) for name in "abc"]
    decisions = [
        vote("a", "judge", S2, is_adjudication=True),
        vote("b", "judge", T, is_adjudication=True),
        vote("c", "judge", BAD, is_adjudication=True),
    ]
    found = rule(items, [*table(a=[F, F, F], b=[F, F], c=[F]), *decisions])
    outcome = found.outcomes[0]
    assert (outcome.first_wins, outcome.margin, outcome.probability, outcome.raters) == (False, 1.0, 1.0, ("judge",))
    assert len(found.outcomes) == 1
    assert (found.ties, found.left_out) == (1, {"adjudicated": 6, NO_OUTCOME: 1})


@pytest.mark.parametrize("rule", RULES)
def test_a_tie_is_dropped_or_given_in_both_orders(rule: Rule) -> None:
    items, votes = [item(name) for name in "abcd"], table(a=[F, F, F], b=[F, S], c=[T, T, T], d=[S, S, S])
    dropped, both = rule(items, votes), rule(items, votes, Ties.BOTH_ORDERS)
    assert [outcome.item.id for outcome in dropped.outcomes] == ["a", "d"]
    assert dropped.ties == both.ties == 2
    assert [(o.item.id, o.first_wins, o.margin, o.probability) for o in both.outcomes[1:-1]] == [
        ("b", True, 0.0, 0.5),
        ("b", False, 0.0, 0.5),
        ("c", True, 0.0, 0.5),
        ("c", False, 0.0, 0.5),
    ]


@pytest.mark.parametrize("rule", RULES)
def test_no_votes(rule: Rule) -> None:
    assert rule([], []).outcomes == ()
    assert rule([item("a")], []).left_out == {NO_OUTCOME: 1}


def test_bradley_terry_of_isolated_pairs_by_hand() -> None:
    """Ridge ½: with 3 of 4 votes the difference solves 3 − 4σ(d) = d/4, so d = 0.8365; a tie is half a vote."""
    votes = table(a=[F, F, F, S], b=[S, S, T, T, S, F])
    a, b = bradley_terry([item("a"), item("b")], votes).outcomes
    assert (a.first_wins, b.first_wins) == (True, False)
    assert a.margin == pytest.approx(0.8365, abs=1e-4)
    assert a.probability == pytest.approx(1 / (1 + math.exp(-a.margin)))
    assert 4 - 6 * b.probability == pytest.approx(b.margin / 4, abs=1e-6)  # 3 wins and 2 halves of 6 votes


def test_bradley_terry_joins_pairs_that_share_an_answer() -> None:
    """x beats y and y beats z 5 to 0; on x and z there is one vote, for z: the strengths overrule it."""
    items = [item("xy", ("x", "y"), "p"), item("yz", ("y", "z"), "p"), item("xz", ("x", "z"), "p")]
    votes = table(xy=[F] * 5, yz=[F] * 5, xz=[S])
    assert [outcome.first_wins for outcome in bradley_terry(items, votes).outcomes] == [True, True, True]
    assert [outcome.first_wins for outcome in majority(items, votes).outcomes] == [True, True, False]


def test_dawid_skene_weighs_raters() -> None:
    """Two raters at 95% against three coins: more items right than by the majority of the five."""
    raters = [SimulatedRater(name=f"good{i}", accuracy=0.95) for i in range(2)]
    raters += [SimulatedRater(name=f"coin{i}", habit=Habit.COIN) for i in range(3)]
    simulated = simulate_items(200, seed=1)
    votes = simulate_votes(simulated, raters, overlap=5, seed=1)
    truth = {of.id: bool(d > 0) for of, d in zip(simulated.items, simulated.differences)}
    found = dawid_skene(simulated.items, votes)
    right = [outcome.first_wins == truth[outcome.item.id] for outcome in found.outcomes]
    by_majority = [o.first_wins == truth[o.item.id] for o in majority(simulated.items, votes).outcomes]
    assert found.is_converged
    assert sum(right) > 180 > sum(by_majority)
    assert len(independent(simulated.items, votes).votes) == 1000


def test_an_adjudicators_skip_decides_nothing() -> None:
    item = Item(id="i", prompt="p", answers=(Answer(text="a"), Answer(text="b")))
    votes = [
        Vote(id=str(i), item="i", rater=f"r{i}", choice=choice)
        for i, choice in enumerate([Choice.FIRST_MUCH, Choice.FIRST_MUCH, Choice.SECOND_MUCH])
    ]
    skip = Vote(id="s", item="i", rater="judge", choice=Choice.SKIP, is_adjudication=True)
    [outcome] = majority([item], [*votes, skip]).outcomes
    assert outcome.first_wins and outcome.probability == pytest.approx(2 / 3)
    decided = Vote(id="d", item="i", rater="judge-2", choice=Choice.SECOND_MUCH, is_adjudication=True)
    [outcome] = majority([item], [*votes, decided, skip]).outcomes
    assert not outcome.first_wins and outcome.probability == 1.0
