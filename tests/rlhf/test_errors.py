from __future__ import annotations

import pickle

import pytest

from rlhf.errors import MOST_PROBLEMS, LostError, Stopped, UserError, Waiting, raise_all


def test_nothing_wrong_raises_nothing():
    raise_all([], "heading")


def test_one_problem_is_raised_as_it_is():
    problem = UserError("a is 1", "it is odd", "a=2")
    with pytest.raises(UserError) as error:
        raise_all([problem], "heading")
    assert error.value is problem


def test_several_problems_are_numbered_with_reason_and_way_out():
    with pytest.raises(UserError) as error:
        raise_all([UserError("a is 1", "it is odd", "a=2"), UserError("b is 3")], "run.yaml")
    assert str(error.value) == "run.yaml: 2 problems\n1. a is 1\n  why: it is odd\n  fix: a=2\n2. b is 3"


def test_more_than_a_screen_is_counted():
    with pytest.raises(UserError) as error:
        raise_all([UserError(f"problem {number}") for number in range(MOST_PROBLEMS + 3)], "run.yaml")
    lines = str(error.value).splitlines()
    assert len(lines) == MOST_PROBLEMS + 2 and lines[-1] == "... and 3 more"


def test_a_loss_tells_of_each_actor_what_concerns_it():
    two = ("policy rank 0", "policy rank 1")
    error = pickle.loads(
        pickle.dumps(LostError("policy rank 1 died during update: gone", two[1:], reason="gone", of_whom=two[1:]))
    )
    assert error.of(two).told_of(two) == "gone"
    assert error.of(two).told_of(two[:1]) == "lost together with policy rank 1"
    assert error.of(two[:1]).told_of(two[:1]) == str(error), "its subject is reported nowhere else"
    assert LostError("an object is lost", two).told_of(two) == "an object is lost"
    assert (error.of(two, "stalled").kind, error.of(two).kind) == ("stalled", "died")


@pytest.mark.parametrize(
    "error",
    [
        UserError("what \ud83d", "why \ud83d", "fix \ud83d"),
        LostError("\ud83d", ("policy rank 0",), "died", "\ud83d"),
        Stopped("\ud83d", "\ud83d"),
        Waiting("\ud83d", "\ud83d"),
    ],
)
def test_a_half_of_a_surrogate_pair_in_a_message_becomes_its_escape(error):
    again = pickle.loads(pickle.dumps(error))
    for each in (error, again):
        assert "\\ud83d" in str(each) and str(each).isascii()
        texts = [text for text in vars(each).values() if isinstance(text, str)]
        assert all(text.isascii() for text in texts), "those that events.jsonl and the console get"
