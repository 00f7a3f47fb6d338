"""Tests of a member's transitions: no member serves without verification of the published weights."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from rlhf.recovery.member import Member, State, role_of

MOVES: dict[str, Callable[[Member], Member]] = {
    "loaded": Member.loaded,
    "verified": lambda member: member.verified(member.published),
    "died": Member.died,
    "restarted": Member.restarted,
}
ALLOWED = {  # by hand: the drawing at the top of member.py
    ("starting", "loaded"): "loaded",
    ("loaded", "verified"): "serving",
    ("starting", "died"): "dead",
    ("loaded", "died"): "dead",
    ("serving", "died"): "dead",
    ("dead", "restarted"): "starting",
}


def member_in(state: str, version: int = 3) -> Member:
    """A member that came to ``state`` by lawful moves."""
    starting = Member(name="rollout engine 0", published=version)
    serving = starting.loaded().verified(version)
    members = [starting, starting.loaded(), serving, serving.died()]
    return {str(member.state): member for member in members}[state]


@pytest.mark.parametrize("move", MOVES)
@pytest.mark.parametrize("state", [str(state) for state in State])
def test_only_the_moves_of_the_drawing_are_possible(state: str, move: str) -> None:
    member = member_in(state)
    if (state, move) in ALLOWED:
        assert MOVES[move](member).state == ALLOWED[state, move]
    else:
        with pytest.raises(ValueError, match=rf"rollout engine 0 cannot go from {state} to \w+$"):
            MOVES[move](member)


def test_a_publish_sends_those_back_that_held_other_weights() -> None:
    for state, after in (("starting", "starting"), ("loaded", "loaded"), ("serving", "loaded"), ("dead", "dead")):
        member = member_in(state).published_to(4)
        assert (member.state, member.published) == (after, 4)


def test_a_verification_of_other_weights_than_those_published_is_refused() -> None:
    late = member_in("serving").published_to(4)
    with pytest.raises(ValueError, match="rollout engine 0 holds version 3 of the weights; 4 is published"):
        late.verified(3)


def test_a_life() -> None:
    member = Member(name="policy rank 1").loaded().verified(0)
    assert member.serves
    member = member.published_to(1)
    assert member.has_process and not member.serves
    member = member.verified(1)
    assert member.serves
    member = member.died()
    assert not member.has_process and not member.serves
    assert member.published_to(2).restarted().loaded().verified(2).serves


class AnyOrder(RuleBasedStateMachine):
    """Calls in any order, allowed or not, compared with a separate record of published and verified versions."""

    def __init__(self) -> None:
        super().__init__()
        self.member = Member(name="engine")
        self.published = 0
        self.is_verified = False  # since it was last started, and since the last publish

    @rule(move=st.sampled_from(sorted(set(MOVES) - {"verified"})))
    def move(self, move: str) -> None:
        """Any move but a verification."""
        with suppress(ValueError):
            self.member = MOVES[move](self.member)
        if self.member.state == State.DEAD:
            self.is_verified = False

    @rule(back=st.integers(0, 2))
    def verify(self, back: int) -> None:
        """A verification of the published version, or one that is late by some publishes."""
        with suppress(ValueError):
            self.member = self.member.verified(self.published - back)
            self.is_verified = True

    @rule()
    def publish(self) -> None:
        """The next version."""
        self.published, self.is_verified = self.published + 1, False
        self.member = self.member.published_to(self.published)

    @precondition(lambda self: self.member.state in (State.STARTING, State.LOADED))
    @rule()
    def get_on(self) -> None:
        """The next lawful move up, so that many examples come to serve."""
        if self.member.state is State.LOADED:
            self.verify(0)
        else:
            self.move("loaded")

    @invariant()
    def who_serves_is_verified_with_what_is_published(self) -> None:
        """The rule that all else is for."""
        assert self.member.serves == self.is_verified
        assert self.member.published == self.published


TestAnyOrder = AnyOrder.TestCase


@pytest.mark.parametrize(
    ("name", "role"),
    [
        ("policy rank 3", "policy"),
        ("rollout engine 12", "rollout"),
        ("reward model rank 1", "reward model"),
        ("x", "x"),
    ],
)
def test_the_role_is_in_the_name(name: str, role: str) -> None:
    assert role_of(name) == role
