"""Tests of a member's transitions: no member serves without having proved the published weights."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from rlhf.recovery.member import Member, State, role_of
from rlhf.types import UNVERIFIED

MOVES: dict[str, Callable[[Member], Member]] = {
    "loaded": lambda member: member.loaded(1.0),
    "proved": lambda member: member.proved(member.published, 1.0),
    "admitted": lambda member: member.admitted(1.0),
    "stalled": lambda member: member.stalled(1.0),
    "died": lambda member: member.died(1.0),
    "restarted": lambda member: member.restarted(1.0),
    "given_up": lambda member: member.given_up(1.0),
}
ALLOWED = {  # by hand: the drawing at the top of member.py
    ("starting", "loaded"): "loaded",
    ("loaded", "proved"): "current",
    ("current", "admitted"): "serving",
    ("starting", "stalled"): "stalled",
    ("loaded", "stalled"): "stalled",
    ("current", "stalled"): "stalled",
    ("serving", "stalled"): "stalled",
    ("starting", "died"): "dead",
    ("loaded", "died"): "dead",
    ("current", "died"): "dead",
    ("serving", "died"): "dead",
    ("stalled", "died"): "dead",
    ("dead", "restarted"): "starting",
    ("dead", "given_up"): "gone",
}


def member_in(state: str, version: int = 3) -> Member:
    """A member that came to ``state`` by lawful moves."""
    starting = Member(name="rollout engine 0", since=0.0, published=version)
    loaded = starting.loaded(0.0)
    current = loaded.proved(version, 0.0)
    dead = current.died(0.0)
    members = [starting, loaded, current, current.admitted(0.0), current.stalled(0.0), dead, dead.given_up(0.0)]
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


def test_a_publish_sends_those_back_that_had_proved_other_weights() -> None:
    for state in ("current", "serving"):
        member = member_in(state).published_to(4, 7.0)
        assert (member.state, member.version, member.published, member.since) == ("loaded", UNVERIFIED, 4, 7.0)
    for state in ("starting", "loaded", "stalled", "dead", "gone"):
        member = member_in(state).published_to(4, 7.0)
        assert (member.state, member.version, member.published, member.since) == (state, UNVERIFIED, 4, 0.0)


def test_a_proof_of_other_weights_than_those_published_is_refused() -> None:
    late = member_in("serving").published_to(4, 0.0)
    with pytest.raises(ValueError, match="rollout engine 0 proved version 3 of the weights; 4 is published"):
        late.proved(3, 0.0)


def test_a_life() -> None:
    member = Member(name="policy rank 1", since=0.0).loaded(1.0).proved(0, 2.0).admitted(3.0)
    assert member.serves and member.version == 0
    member = member.published_to(1, 4.0).proved(1, 5.0).admitted(6.0)
    assert member.serves and member.version == 1
    member = member.stalled(7.0)
    assert member.has_process and not member.serves
    member = member.died(8.0)
    assert not member.has_process and (member.deaths, member.version, member.since) == (1, UNVERIFIED, 8.0)
    member = member.published_to(2, 9.0).restarted(10.0).loaded(11.0).proved(2, 12.0).admitted(13.0)
    assert member.serves and member.version == 2
    assert not member.died(14.0).given_up(15.0).has_process


class AnyOrder(RuleBasedStateMachine):
    """Calls in any order, allowed or not, compared with a separate record of published and proved versions."""

    def __init__(self) -> None:
        super().__init__()
        self.member = Member(name="engine", since=0.0)
        self.published, self.deaths = 0, 0
        self.has_proved = False  # since it was last started, and since the last publish

    @rule(move=st.sampled_from(sorted(set(MOVES) - {"proved"})))
    def move(self, move: str) -> None:
        """Any move but a proof."""
        before = self.member.state
        with suppress(ValueError):
            self.member = MOVES[move](self.member)
        if self.member.state == State.DEAD and before != State.DEAD:
            self.deaths, self.has_proved = self.deaths + 1, False

    @rule(back=st.integers(0, 2))
    def prove(self, back: int) -> None:
        """A proof of the published version, or one that is late by some publishes."""
        with suppress(ValueError):
            self.member = self.member.proved(self.published - back, 1.0)
            self.has_proved = True

    @rule()
    def publish(self) -> None:
        """The next version."""
        self.published, self.has_proved = self.published + 1, False
        self.member = self.member.published_to(self.published, 1.0)

    @precondition(lambda self: self.member.state in (State.STARTING, State.LOADED, State.CURRENT))
    @rule()
    def get_on(self) -> None:
        """The next lawful move up, so that many examples come to serve."""
        if self.member.state is State.LOADED:
            self.prove(0)
        else:
            self.move("loaded" if self.member.state is State.STARTING else "admitted")

    @invariant()
    def who_serves_has_proved_what_is_published(self) -> None:
        """The rule that all else is for."""
        if self.member.serves:
            assert self.has_proved
            assert self.member.version == self.published

    @invariant()
    def a_version_is_known_only_of_who_proved_it(self) -> None:
        """And deaths are counted."""
        proven = self.member.state in (State.CURRENT, State.SERVING)
        assert self.member.version == (self.published if proven else UNVERIFIED)
        assert self.member.deaths == self.deaths


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
